/*
 * unshared.h - the parts of a window that the program has changed for itself (-o window=private):
 * a sorted list of region offsets without overlap, in whole 2 MiB spans, since a process has a page
 * table of its own for each of them.
 *
 *   span     |.................|.................|
 *   program        mprotect          munmap
 *   list     |FFFFF444FFFFFFFFF|FFFFFGGGGGGFFFFFF|    F: follows the region   4: rights   G: gone
 *
 * Functions return 0 or -errno.
 */
#ifndef MSHARE_UNSHARED_H
#define MSHARE_UNSHARED_H

#include <stdbool.h>
#include <stdint.h>

/* What a part has, if not rights of its own (PROT_*). */
enum unshared_what {
    UNSHARED_FOLLOWS = -1, /* the region's rights; as if it were not in the list */
    UNSHARED_GONE = -2,    /* unmapped, or memory of the program's own is there */
    UNSHARED_KEEP = -3,    /* in a change: what it has, with a table of its own */
};

struct unshared {
    struct unshared_part {
        uint64_t start, end;
        int what; /* PROT_*, or enum unshared_what */
    } *list;
    unsigned count;
};

/* The list after a change of [start, end), whole pages, goes to *next, to take the place of the old
 * one or to be freed. -ENOMEM. */
int unshared_change(const struct unshared *now, uint64_t start, uint64_t end, int what,
                    struct unshared *next);
void unshared_free(struct unshared *unshared);
/* PROT_*, UNSHARED_FOLLOWS or UNSHARED_GONE. */
int unshared_at(const struct unshared *unshared, uint64_t offset);
/* The same of `start`, in *what, and where the run that has it ends, `end` at the latest. */
uint64_t unshared_run(const struct unshared *unshared, uint64_t start, uint64_t end, int *what);
/* The page tables that take: spans that are not wholly gone. */
uint64_t unshared_tables(const struct unshared *unshared);

/* The rights of a page: those that the program has given it, or `otherwise`. */
static inline int unshared_prot(const struct unshared *unshared, uint64_t offset, int otherwise)
{
    const int what = unshared->count ? unshared_at(unshared, offset) : UNSHARED_FOLLOWS;

    return what >= 0 ? what : otherwise;
}

#endif
