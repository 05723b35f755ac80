/*
 * budget.h - how much of its own page tables a client keeps for an attachment: the policy.
 * It is set by budget_set.h; reclaim.h gives back.
 */
#ifndef MSHARE_BUDGET_H
#define MSHARE_BUDGET_H

#include "client/attachment.h"

/* Call at the end of every answered fault: the span of `offset` may be mapped from now on.
 * `again`: the page was there already, so this is no first touch. May take other spans away.
 * Precondition: att->lock held, outside of epochs, on the service thread or in the shadow. */
void budget_fault(struct attachment *att, uint64_t offset, bool again);
/* Takes the sample that is due if the budget has grown. Returns after how many milliseconds it
 * must be called again, or -1: there is no need.
 * Precondition: att->lock held, outside of epochs, on the service thread or in the shadow. */
int budget_tick(struct attachment *att);
/* For all attachments. Precondition: on the service thread, without a lock held. */
int budget_tick_all(void);

/* For budget_set.c. */

/* Puts a span into the queue. Precondition: the lock of the attachment. */
void budget_push(struct budget *b, uint32_t number);
/* Gives back the spans beyond the limit, as far as that is possible.
 * Precondition: att->lock held, outside of epochs. */
void budget_trim(struct attachment *att);
/* Shows the budget in the slot, for `msharefs clients`. Precondition: att->lock held. */
void budget_publish(const struct attachment *att);

#endif
