/*
 * reclaim.h - giving a page table back to the kernel while its span stays in the window.
 */
#ifndef MSHARE_RECLAIM_H
#define MSHARE_RECLAIM_H

#include "client/attachment.h"

/* Finds out how this kernel frees a table, once in each process. Precondition: none. */
void reclaim_probe(void);
/* Takes the span at region offset `start` out of the real page tables, and frees its
 * table. For the next access, data, protection and refusals are as before.
 * -EBUSY: not at the moment; other errors: never, as long as the window is as it is.
 * Precondition: att->lock held, outside of epochs. */
int reclaim_span(struct attachment *att, uint64_t start);
/* Leaves budget.scratch reserved and unreadable, as reclaim_span() needs it.
 * Precondition: att->lock held. */
void reclaim_empty(uint8_t *scratch);

#endif
