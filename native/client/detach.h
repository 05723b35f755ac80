/*
 * detach.h - the end of attachments, on request, or because another mapping replaces the window.
 */
#ifndef MSHARE_DETACH_H
#define MSHARE_DETACH_H

#include "client/attachment.h"

/*
 * Changes the mappings of [start, end) by `change`, which returns 0 or -errno,
 * and ends the attachments whose windows that takes away. -EINVAL: it would take
 * a part of a window that the program must not change for itself, -EPERM: a sealed window; then
 * nothing is changed.
 * Precondition: the table's lock held.
 */
int detach_replace(uint64_t start, uint64_t end, int (*change)(void *), void *arg);
/* Ends an attachment whose window is no longer there. Precondition: both locks held. */
void detach_end(struct attachment *att);
/* Lets go of everything that `att` holds except its window; `claimed`: also of its slot.
 * Precondition: both locks held. */
void detach_drop(struct attachment *att, bool claimed);
/* Nobody is to take its faults: lets go of everything but its window and its place in the table.
 * Precondition: as detach_drop(). */
void detach_unserved(struct attachment *att, bool claimed);
/* Its descriptors are numbers of somebody else's table. Precondition: both locks held. */
void detach_forget(struct attachment *att);
/* Tells the server, which takes the slot back. Precondition: att->lock held, by whoever has the
 * descriptors. */
void detach_goodbye(struct attachment *att);
/* Unmaps the window, which ends the attachment. 0 or -errno.
 * Precondition: the table's lock held. */
int detach(struct attachment *att);

#endif
