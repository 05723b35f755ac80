/*
 * around.h - how far a fault should look beyond its page.
 */
#ifndef MSHARE_AROUND_H
#define MSHARE_AROUND_H

#include "client/attachment.h"

#define AHEAD_PAGES 8192u /* the longest sequential run: 32 MiB, some milliseconds */

/* The span at region offset `span` was taken away: none of it is mapped any more.
 * Precondition: the lock of the attachment. */
void around_forget(struct around *around, uint64_t span);
/* Sets fault->start, end and fill, going by earlier faults. `present`: the page is
 * there already; `touched`: a page of its span has been mapped before; `fault_around`:
 * the region's limit for pages that nobody touched. The caller must then set around->next
 * to the end of the run. Precondition: the lock of the attachment. */
void around_choose(struct around *around, struct fault *fault, bool present, bool touched,
                   uint64_t fault_around);

#endif
