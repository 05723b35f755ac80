/*
 * prefill.h - every entry of a range, filled by the fault path without a client, for
 * `msharefs bench plan-check`, which wants tables but no pages.
 */
#ifndef MSHARE_PREFILL_H
#define MSHARE_PREFILL_H

#include "core/mm.h"

/* Takes one fault for each page of region offsets [start, end), as the client of
 * `slot`. Returns how many entries that filled, or -EFAULT: a page is not mapped,
 * or the tables are full. */
int64_t mm_prefill(struct mm *mm, unsigned slot, uint64_t start, uint64_t end);

#endif
