/*
 * prefill.h - every entry of a range, filled by the fault path without a client:
 * for `msharefs bench plan-check`, which wants the tables and no pages.
 */
#ifndef MSHARE_PREFILL_H
#define MSHARE_PREFILL_H

#include "core/mm.h"

/* Faults once on each page of region offsets [start, end), as the client of
 * `slot`. Returns how many entries that filled, or -EFAULT: something is not
 * mapped or the tables are full. */
int64_t mm_prefill(struct mm *mm, unsigned slot, uint64_t start, uint64_t end);

#endif
