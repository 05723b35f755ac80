/*
 * place.h - private memory whose place a window takes, and which is put back if the attachment
 * fails after that.
 */
#ifndef MSHARE_PLACE_H
#define MSHARE_PLACE_H

#include "client/attachment.h"

struct place {
    struct was {
        uint64_t end;
        int prot;
    } *list; /* its mappings, in order */
    unsigned count;
    uint8_t *room; /* address space for a copy of it; NULL: none */
};

/* Remembers what is mapped where the window is to be. 0 or -errno; -ENOMEM: also if there is a gap.
 * Precondition: the table's lock held. */
int place_look(const struct attachment *att, struct place *place);
/* Puts private memory in the window's place: the bytes of the region, with the rights that it had.
 * Precondition: as above; place_look() was 0. */
void place_restore(const struct attachment *att, struct place *place);
/* Precondition: `place` is zero, or place_look() was called. */
void place_forget(const struct attachment *att, struct place *place);

#endif
