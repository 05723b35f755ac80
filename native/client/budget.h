/*
 * budget.h - how much of its own page tables a client keeps for an attachment: the policy.
 * How it is set is in budget_set.h, the giving back in reclaim.h.
 */
#ifndef MSHARE_BUDGET_H
#define MSHARE_BUDGET_H

#include "client/attachment.h"

/* Call at the end of every answered fault: the span of `offset` may be mapped from now on.
 * `again`: the page was there already, it is no first touch. May take other spans away.
 * Precondition: att->lock held, outside of epochs, on the service thread. */
void budget_fault(struct attachment *att, uint64_t offset, bool again);
/* Does what is due for budgets that have grown. Returns the milliseconds until
 * it is to be called again, -1: not on account of this.
 * Precondition: on the service thread, without a lock held. */
int budget_tick(void);

/* For budget_set.c. */

/* Puts a span into the queue. Precondition: the lock of the attachment. */
void budget_push(struct budget *b, uint32_t number);
/* Gives back as many as there are too many, if they can be had.
 * Precondition: att->lock held, outside of epochs. */
void budget_trim(struct attachment *att);
/* Shows the budget to those who look. Precondition: att->lock held. */
void budget_publish(const struct attachment *att);

#endif
