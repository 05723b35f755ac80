/*
 * adopt.h - shared memory that the program makes for itself becomes a region.
 */
#ifndef MSHARE_PRELOAD_ADOPT_H
#define MSHARE_PRELOAD_ADOPT_H

#include <stdbool.h>
#include <stddef.h>

#include "preload/mapping.h"

/* Whether memory that mmap(2) is asked for is to be adopted. */
bool adopt_wanted(const struct mmap_call *call);
/* Whether it is asked for /dev/zero, which is anonymous memory by another name. */
bool adopt_zero(const struct mmap_call *call);
/* mmap(2) of such memory. What Linux refuses is refused, and where no region can be, it is
 * Linux's own memory. */
void *adopt_map(const struct mmap_call *call);

#endif
