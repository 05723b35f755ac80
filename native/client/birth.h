/*
 * birth.h - how a shadow is made, and how the program waits for it.
 */
#ifndef MSHARE_BIRTH_H
#define MSHARE_BIRTH_H

#include "client/attachment.h"

/* How it is cloned, for confine.h. */
#define BIRTH_CLONE                                                                 \
    (CLONE_VM | CLONE_FILES | CLONE_UNTRACED | CLONE_SETTLS | CLONE_PARENT_SETTID | \
     CLONE_CHILD_CLEARTID)

/* Makes the shadow of `att`: prepare(), by its mother, gives it all that it is to have, 0 or
 * -errno; it then does `life`. Returns when att->shadow.state is no longer SHADOW_BORN. 0 or
 * -errno; then there is no shadow. Precondition: the table's lock held. */
int birth(struct attachment *att, int (*prepare)(struct attachment *),
          void (*life)(struct attachment *));
/* Does `run` in a process that has our memory, and copies of our descriptors: a filter of system
 * calls may kill that one, and we go on. Precondition: as birth(); there is no shadow. */
void birth_errand(struct attachment *att, void (*run)(void *), void *arg);
/* In the shadow: the program may go on; `state` is enum shadow_state or -errno. */
void birth_done(struct attachment *att, int state);
/* Makes att->shadow.family. 0 or -errno. Precondition: as birth(). */
int birth_family(struct attachment *att);
/* Waits for the end of a shadow that was told to end, and frees its memory. Precondition: as
 * birth(); the attachment has ended. */
void birth_undo(struct attachment *att);
/* The memory before the stacks is a guard, or data as that behind it. Whether it could be changed.
 * Precondition: in the shadow. */
bool birth_guard(const struct attachment *att, bool up);
/* Where a short-lived thread of the shadow may have its stack: the end of it. */
uint8_t *birth_second_stack(const struct attachment *att);

#endif
