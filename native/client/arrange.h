/*
 * arrange.h - the window as it must be where no page is reachable yet.
 */
#ifndef MSHARE_ARRANGE_H
#define MSHARE_ARRANGE_H

#include "client/attachment.h"

/* How it makes a thread, for confine.h. */
#define ARRANGE_CLONE                                                                   \
    (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | \
     CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

/* Makes it so at region offsets [start, end). Blocks of objects there go, and come back by
 * faults; with `objects` also those where the region has another mapping by now. 0 or
 * -errno. Precondition: att->lock held, or nobody knows of `att` yet; on the service thread
 * if blocks of objects can be mapped. */
int arrange(struct attachment *att, uint64_t start, uint64_t end, bool objects);

#endif
