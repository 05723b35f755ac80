/*
 * reclaim.h - a page table is given back to the kernel while its span stays in the window.
 */
#ifndef MSHARE_RECLAIM_H
#define MSHARE_RECLAIM_H

#include "client/attachment.h"

/* How this kernel frees a table; looks once a process. Precondition: none. */
void reclaim_probe(void);
/* Takes the span at region offset `start` out of the real page tables, and frees its
 * table. Data, protection and poison are as before for whoever touches it again.
 * -EBUSY: not just now; other errors: as long as the window is as it is, never.
 * Precondition: att->lock held, outside of epochs. */
int reclaim_span(struct attachment *att, uint64_t start);
/* Leaves budget.scratch reserved and unreadable, as reclaim_span() wants it.
 * Precondition: att->lock held. */
void reclaim_empty(uint8_t *scratch);

#endif
