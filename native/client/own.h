/*
 * own.h - what is left of a window. Without the preload library nobody sees that the program unmaps
 * a part of it, and maps something else there: that is not ours to drop, to protect or to map over.
 */
#ifndef MSHARE_OWN_H
#define MSHARE_OWN_H

#include "client/attachment.h"

/* What a part of a window is left of. */
enum own {
    OWN_MEMORY, /* mappings of .mem */
    OWN_ALL,    /* and of shared files, which may be blocks of objects */
};

/* Who looks: only a shadow has a descriptor for it. */
#define OWN_PROGRAM (-1)

/* The descriptor to look by, of whoever serves the attachment. Precondition: none. */
int own_maps(const struct attachment *att);
/* Makes `change` of each part that is left of region offsets [start, end), which gets its offsets,
 * until one returns -errno. In a part, the program has changed all for itself in one way, or
 * nothing. `maps`: own_maps(), or OWN_PROGRAM. Where mappings cannot be looked at, all is taken to
 * be left. 0 or -errno. Precondition: att->lock held, or as attach_claim(). */
int own_each(const struct attachment *att, int maps, enum own kind, uint64_t start, uint64_t end,
             int (*change)(void *arg, uint64_t start, uint64_t end), void *arg);
/* Whether anything is left of the window. Precondition: as own_each(). */
bool own_any(const struct attachment *att);
/* Takes what is left of region offsets [start, end) out of the process, as view_drop().
 * Precondition: as own_each(), by whoever serves the attachment. */
int own_drop(const struct attachment *att, uint64_t start, uint64_t end);

/* Whether all of the window is left, and no block is in it. Precondition: as own_drop(). */
bool own_whole(const struct attachment *att);
/* The window as it is now, for good, since nobody is to watch it: holes can be used, what is not
 * .mem cannot. `maps`: as in own_each(). `claimed`: the slot is ours. Precondition: att->lock
 * held. */
void own_leave(struct attachment *att, int maps, bool claimed);
/* The same of a child that has inherited it all and may be attached again: blocks of files stay,
 * and a page that has been refused stays refused. Precondition: the table's lock held. */
void own_restrict(struct attachment *att);

/* Lets Linux alone have what is mapped at region offset `offset`, if it is not .mem: a block of a
 * file, or memory of the program, which has been watched together with what is around it. 1: done,
 * or nothing is mapped there; 0: it is .mem, or is not to be known; or -errno.
 * Precondition: as own_drop(). */
int own_release(const struct attachment *att, uint64_t offset);

/* In a child of fork(2): the window anew, watched by a userfaultfd of the child's own, where the
 * child has inherited it. 0 or -errno. Precondition: as own_drop(). */
int own_renew(struct attachment *att);

#endif
