/*
 * present.h - the pages that mincore(2) and mlock(2) of an attachment see: like a process of
 * the kernel series, the entries of the shared tables that its own tables link to.
 */
#ifndef MSHARE_PRESENT_H
#define MSHARE_PRESENT_H

#include "client/attachment.h"

/* How many pages of region offsets [start, end) have an entry that this process has
 * linked. `vec` (NULL: not wanted) gets one byte for each page, as from mincore(2).
 * Precondition: att->lock held, outside of epochs. */
uint64_t present_pages(struct attachment *att, uint64_t start, uint64_t end, unsigned char *vec);

/* Linux may have filled pages of the range without us: makes their entries, with att->mem_fd, a
 * descriptor of the caller. 0 or -errno. Precondition: as above. */
int present_catch_up(struct attachment *att, uint64_t start, uint64_t end);

/* The end of the pages that have entries from region offset `from` on without a gap; at most
 * `limit`. Precondition: inside an epoch. */
uint64_t present_end(struct mm *mm, uint64_t from, uint64_t limit);
/* The start of such pages right before `from`; at least `limit`. Precondition: inside an epoch. */
uint64_t present_begin(struct mm *mm, uint64_t from, uint64_t limit);

#endif
