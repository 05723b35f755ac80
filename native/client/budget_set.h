/*
 * budget_set.h - a budget of page tables is set, inherited and ended.
 */
#ifndef MSHARE_BUDGET_SET_H
#define MSHARE_BUDGET_SET_H

#include "client/attachment.h"

/* Sets the budget of an attachment, in bytes; 0: none. `mapped`: spans may be mapped
 * already. -EINVAL: less than BUDGET_MIN_BYTES. -ENOMEM. Precondition: att->lock held. */
int budget_set(struct attachment *att, uint64_t bytes, bool mapped);
/* The budget that a new attachment is to have: MSHAREFS_PT_BUDGET, or else the
 * region's. -EINVAL: the variable does not hold a size. Precondition: nobody knows of `att`. */
int budget_start(struct attachment *att);
/* In a child of fork(), whose window has no page mapped yet and whose slot is new.
 * Precondition: both locks held. */
void budget_forked(struct attachment *att);
/* Precondition: att->lock held. */
void budget_end(struct attachment *att);

#endif
