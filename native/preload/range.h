/*
 * range.h - a range of addresses, and the windows in it.
 */
#ifndef MSHARE_PRELOAD_RANGE_H
#define MSHARE_PRELOAD_RANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/attachment.h"

/* A range of addresses, whole pages. */
struct range {
    uint64_t start, end;
};

/* Finds the pages of a call's arguments. False: the kernel refuses them, or has nothing to
 * do, or no window is near; then the call is left to the kernel. */
bool preload_concerns(const void *addr, size_t length, struct range *range);
/* The attachment that has something at `addr`, or NULL. Precondition: the table's lock held. */
struct attachment *preload_window(uint64_t addr);
/* Calls `part` for the parts of a range in order: the windows of regions, and (att is NULL)
 * the memory between them, to which adopted memory belongs, and what a program has in the place of
 * a part of a window. Ends at the first result other
 * than 0, and returns it.
 * Precondition: the table's lock held. */
int preload_parts(struct range range,
                  int (*part)(struct attachment *att, struct range range, void *arg), void *arg);

#endif
