/*
 * arrange.h - the window as it must be where nothing has been made reachable yet.
 */
#ifndef MSHARE_ARRANGE_H
#define MSHARE_ARRANGE_H

#include "client/attachment.h"

/* Makes it so at region offsets [start, end). What is mapped of objects there goes, and
 * comes back by faults; with `objects` also where the region has something else by now.
 * 0 or -errno. Precondition: att->lock held, or nobody knows of `att` yet; on the service
 * thread if anything of objects can be mapped. */
int arrange(struct attachment *att, uint64_t start, uint64_t end, bool objects);

#endif
