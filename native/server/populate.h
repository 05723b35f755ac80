/*
 * populate.h - entries for pages that nobody has touched, because somebody asked for them.
 */
#ifndef MSHARE_POPULATE_H
#define MSHARE_POPULATE_H

#include "core/mm.h"

/* Gives each page of [start, end), region offsets inside `vma`, an entry as from a load, or from a
 * store (`write`). They count as faults. Returns how many are new, or -errno.
 * Precondition: the only writer of VMAs, and `vma` is one of the current ones; the pages are
 * there. */
int64_t populate(struct mm *mm, struct mm_vma vma, uint64_t start, uint64_t end, bool write);

#endif
