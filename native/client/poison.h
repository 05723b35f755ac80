/*
 * poison.h - pages made to fault natively, so that a refused access ends in the signal the
 * kernel would give, in the thread that made it.
 */
#ifndef MSHARE_POISON_H
#define MSHARE_POISON_H

#include "client/attachment.h"

/* Makes the page of a refused fault fault natively. Inside the fault's epoch: a server
 * that maps something there afterwards waits for us and then sees it.
 * Precondition: att->lock held, inside an epoch. */
void poison_page(struct attachment *att, const struct fault *fault, enum fault_verdict verdict);
/* Lets pages of region offsets [start, end) reach us again.
 * Precondition: att->lock held, outside of epochs. */
void poison_rearm(struct attachment *att, uint64_t start, uint64_t end);
/* Something else is mapped at region offsets [start, end): nothing is to be undone.
 * Precondition: att->lock held. */
void poison_forget(struct attachment *att, uint64_t start, uint64_t end);

#endif
