/*
 * pagetable.h - the one walker of the shared tables.
 *
 *   host address   47      39 38      30 29      21 20      12 11       0
 *                 |   PGD    |   PUD    |   PMD    |   PTE    |  offset  |
 *   table level        3          2          1          0
 *
 * A visitor says what to do at the entries; descending, checking and (when
 * asked) adding tables is done here and nowhere else.
 */
#ifndef MSHARE_PAGETABLE_H
#define MSHARE_PAGETABLE_H

#include "core/mm.h"

struct walk {
    struct mm *mm;
    /* A leaf entry: a PTE, or a PMD entry with ENTRY_HUGE; `addr` is where its
     * span begins. Absent ones are shown only in tables that exist, and in PMD
     * tables only with `huge`. A result other than 0 ends the walk and is
     * returned by it. */
    int (*leaf)(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr);
    /* After the entries of a table; `entry` pointed to it. Use `frame`, which was
     * checked: the entry may change under our eyes. May be NULL. */
    int (*table)(struct walk *walk, _Atomic uint64_t *entry, uint64_t frame, unsigned level,
                 uint64_t addr);
    /* Called for an entry that is not sane. NULL: the walk ends with -EUCLEAN. */
    int (*bad)(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr);
    /* Add missing tables, as the client of this slot. */
    bool alloc;
    unsigned slot;
    /* Absent entries of 4 KiB are not shown. */
    bool filled;
    /* The range has 2 MiB pages: an absent PMD entry is a leaf that may still come. */
    bool huge;
    void *arg;
};

/* Visits the entries of host addresses [start, end).
 * Precondition: inside an epoch, or the only writer. */
int walk_range(struct walk *walk, uint64_t start, uint64_t end);

/* Bytes that an entry of a table of `level` spans: 4 KiB, 2 MiB, 1 GiB, 512 GiB. */
static inline uint64_t entry_span(unsigned level) { return PAGE_SIZE << 9 * level; }
static inline unsigned entry_shift(unsigned level) { return PAGE_SHIFT + 9 * level; }

#endif
