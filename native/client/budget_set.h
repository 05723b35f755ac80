/*
 * budget_set.h - setting, inheriting and ending a budget of page tables.
 */
#ifndef MSHARE_BUDGET_SET_H
#define MSHARE_BUDGET_SET_H

#include "client/attachment.h"

/* Sets the budget of an attachment, in bytes; 0: none. -EINVAL: less than BUDGET_MIN_BYTES.
 * -ENOMEM. Precondition: both locks held. */
int budget_set(struct attachment *att, uint64_t bytes);
/* Does it, on the side that has the descriptors. `mapped`: spans may be mapped already.
 * Precondition: att->lock held, or nobody knows of `att` yet. */
int budget_apply(struct attachment *att, uint64_t bytes, bool mapped);
/* Sets the first budget of a new attachment: MSHAREFS_PT_BUDGET, or the region's if that is
 * not set. -EINVAL: the variable is no size. Precondition: nobody knows of `att`. */
int budget_start(struct attachment *att);
/* In a child of fork(), whose window has no page mapped yet and whose slot is new.
 * Precondition: both locks held. */
void budget_forked(struct attachment *att);
/* Precondition: att->lock held. */
void budget_end(struct attachment *att);

#endif
