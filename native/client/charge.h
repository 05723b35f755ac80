/*
 * charge.h - pages that the owner of a region pays for (-o charge=owner). Internal to the client
 * library.
 */
#ifndef MSHARE_CHARGE_H
#define MSHARE_CHARGE_H

#include "client/attachment.h"

/* Has the pages made that a fault is to fill, if there is none at its offset. Otherwise 0: the
 * fault fills entries of those that are there.
 * -EINPROGRESS: the answer will come, or a wake-up of all when a server is back. -EAGAIN: try
 * again. `ahead` is att->around.pages before the fault has changed it: the same fault comes again.
 * Precondition: att->lock held, inside the epoch of the fault, which is of anonymous memory. */
int charge_pages(struct attachment *att, struct fault *fault, bool present, uint64_t ahead);
/* Reads an answer. -ESRCH: it is none. Otherwise `fault` has the pages that threads may wait for,
 * and the result says whether they are there: 0; -EAGAIN: look again; -ENOMEM: the owner cannot
 * pay for them; another error. Precondition: att->lock held. */
int charge_told(struct attachment *att, const struct msg *msg, struct fault *fault);

#endif
