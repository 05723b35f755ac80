/*
 * birth.h - how a shadow is made, and how the program waits for it.
 */
#ifndef MSHARE_BIRTH_H
#define MSHARE_BIRTH_H

#include "client/attachment.h"

/* Makes the shadow of `att`, which does `life`; returns when att->shadow.state is no longer
 * SHADOW_BORN. 0 or -errno; then there is no shadow. Precondition: the table's lock held. */
int birth(struct attachment *att, void (*life)(struct attachment *));
/* In the shadow: the program may go on; `state` is enum shadow_state or -errno. */
void birth_done(struct attachment *att, int state);
/* Waits for the end of a shadow that was told to end, and frees its memory. Precondition: as
 * birth(); the attachment has ended. */
void birth_undo(struct attachment *att);
/* Where a short-lived thread of the shadow may have its stack: the end of it. */
uint8_t *birth_second_stack(const struct attachment *att);

#endif
