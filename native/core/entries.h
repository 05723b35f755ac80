/*
 * entries.h - entries of memory that Linux fills by itself, without a fault that comes to us.
 */
#ifndef MSHARE_ENTRIES_H
#define MSHARE_ENTRIES_H

#include <stdbool.h>

#include "core/mm.h"

enum entries_how {
    ENTRIES_NOW,    /* as things are, but for what is being changed */
    ENTRIES_EXACT,  /* and entries whose pages are gone are taken out: nobody else makes any */
    ENTRIES_BEFORE, /* in the middle of a change: by the VMAs that were there before */
};

/* For the next `ns` nanoseconds at least, first touches are not left to Linux, and nobody makes
 * entries of what `.mem` has. Memory that Linux fills already comes back to us when its entries are
 * taken out (MADV_DONTNEED of the region): from then on an entry tells of a touch.
 * Precondition: the only writer of VMAs. */
void entries_watch(struct mm *mm, uint64_t ns);
bool entries_watched(const struct mm *mm);
/* Whether a fault in memory that all may read and write leaves the first touches around it to
 * Linux. */
bool entries_by_linux(const struct mm *mm);

/* Gives each page that `mem_fd` has in [start, end), region offsets, an entry, where anonymous
 * memory is mapped, and counts those that are new as faults of `slot`; MM_SLOTS: of nobody.
 * Returns how many are new, or -errno.
 * ENTRIES_NOW does nothing where entries_watched().
 * Precondition: the only writer of VMAs; or inside an epoch of `slot`, and ENTRIES_NOW. */
int64_t entries_catch_up(struct mm *mm, unsigned slot, int mem_fd, uint64_t start, uint64_t end,
                         enum entries_how how);
/* The next 2 MiB spans from *start on (in and out) with pages, up to *stop (out). False: none
 * before `end`. */
bool entries_span(int mem_fd, uint64_t *start, uint64_t end, uint64_t *stop);

#endif
