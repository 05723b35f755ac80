/*
 * present.h - what mincore(2) and mlock(2) of an attachment see: as a process of the
 * kernel series does, the entries of the shared tables that its own link to.
 */
#ifndef MSHARE_PRESENT_H
#define MSHARE_PRESENT_H

#include "client/attachment.h"

/* How many pages of region offsets [start, end) have an entry that this process has
 * linked. `vec` (NULL: not wanted) gets a byte a page, as mincore(2) fills it.
 * Precondition: att->lock held, outside of epochs. */
uint64_t present_pages(struct attachment *att, uint64_t start, uint64_t end, unsigned char *vec);

/* Where the pages end that have entries from region offset `from` on, without a gap; at most
 * `limit`. Precondition: inside an epoch. */
uint64_t present_end(struct mm *mm, uint64_t from, uint64_t limit);
/* And where those right before `from` begin, at least `limit`. Precondition: inside an epoch. */
uint64_t present_begin(struct mm *mm, uint64_t from, uint64_t limit);

#endif
