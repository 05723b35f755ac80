/*
 * poison.h - guard pages: made to fault natively, so that a refused access ends in the signal
 * the kernel would give, in the thread that made it.
 */
#ifndef MSHARE_POISON_H
#define MSHARE_POISON_H

#include "client/attachment.h"

/* Guards the page of a refused fault. This is done inside the fault's epoch, so a server that
 * maps something there afterwards waits for us and then sees the guard page.
 * Precondition: att->lock held, inside an epoch. */
void poison_page(struct attachment *att, const struct fault *fault, enum fault_verdict verdict);
/* Removes the guard pages of region offsets [start, end): their faults reach us again.
 * Precondition: att->lock held, outside of epochs. */
void poison_rearm(struct attachment *att, uint64_t start, uint64_t end);
/* Forgets the guard pages of region offsets [start, end): another mapping is there now.
 * Precondition: att->lock held. */
void poison_forget(struct attachment *att, uint64_t start, uint64_t end);

/* Makes every access of a page a SIGBUS, whatever the region says. False: it was not possible.
 * Precondition: on the service thread or in the shadow. */
bool poison_nothing(const struct attachment *att, uint8_t *page);

#endif
