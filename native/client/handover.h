/*
 * handover.h - runs of pages that are not watched: Linux serves them without us. Internal to
 * the client library.
 */
#ifndef MSHARE_HANDOVER_H
#define MSHARE_HANDOVER_H

#include "client/attachment.h"

/* After a fault that found its page present: hands over the fully populated run of pages
 * around it, and wakes the threads that wait in it. False: it was not worth it, or not
 * possible; the page has to be made reachable as usual.
 * Precondition: att->lock held, inside the epoch of the fault. */
bool handover(struct attachment *att, const struct fault *fault);
/* Whether the program probably writes the next pages in turn: those that are there are mapped
 * ahead of it, which costs a quarter of Linux's faults. */
bool handover_sequential_write(const struct attachment *att, const struct fault *fault);
/* After a fault in memory that all may read and write: leaves its first touches to Linux, in the
 * largest possible run around it, and wakes the threads that wait there. False: as handover().
 * Precondition: as handover(). */
bool handover_absent(struct attachment *att, const struct fault *fault);
/* Cuts unwatched pages off the range that a fault looks at. Precondition: att->lock held. */
void handover_clip(const struct attachment *att, struct fault *fault);
/* Watches everything again; mapped pages stay mapped. 0 or -errno.
 * Precondition: att->lock held. */
int handover_end(struct attachment *att);
/* The same for the program, which may have no descriptor. 0 or -errno. Precondition: both locks
 * held. */
int handover_leave(struct attachment *att);
/* Watches one 2 MiB span again, in an attachment with a budget. Precondition: att->lock held. */
int handover_end_span(struct attachment *att, uint32_t number);

#endif
