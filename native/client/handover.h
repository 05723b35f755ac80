/*
 * handover.h - runs of pages that Linux serves without us. Internal to the client library.
 */
#ifndef MSHARE_HANDOVER_H
#define MSHARE_HANDOVER_H

#include "client/attachment.h"

/* After a fault that found its page there: hands over the run of pages around it that are
 * all there, and wakes who waits in it. False: it was not worth it, or not possible; the
 * page is to be made reachable as ever.
 * Precondition: att->lock held, inside the epoch of the fault. */
bool handover(struct attachment *att, const struct fault *fault);
/* Leaves what is handed over out of what a fault looks at. Precondition: att->lock held. */
void handover_clip(const struct attachment *att, struct fault *fault);
/* Before fork(2): hands over runs of adopted memory without waiting for a fault in them, so
 * that a child has them from the begin. Looks at a part of the tables each time.
 * Precondition: att->lock held, outside of epochs. */
void handover_search(struct attachment *att);
/* Watches adopted memory, but for what is handed over: in a forked child by its parent, and
 * counted as the child's own. 0 or -errno.
 * Precondition: att->lock held, or nobody knows of `att` yet; outside of epochs. */
int handover_inherit(struct attachment *att);
/* Watches again all that is handed over; what is mapped there stays mapped. 0 or -errno.
 * Precondition: att->lock held. */
int handover_end(struct attachment *att);
/* The same for one 2 MiB span of an attachment with a budget. Precondition: att->lock held. */
int handover_end_span(struct attachment *att, uint32_t number);

#endif
