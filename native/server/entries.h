/*
 * entries.h - entries of memory that Linux fills by itself, without a fault that comes to us.
 */
#ifndef MSHARE_ENTRIES_H
#define MSHARE_ENTRIES_H

#include <stdbool.h>

#include "core/mm.h"

/* Gives each page that `mem_fd` has in [start, end), region offsets, an entry, where anonymous
 * memory is mapped, and counts those that are new as faults. With `exact` it also takes out the
 * entries of pages that are gone. Returns how many are new, or -errno.
 * Precondition: the only writer, and no VMA is about to change. */
int64_t entries_catch_up(struct mm *mm, int mem_fd, uint64_t start, uint64_t end, bool exact);

#endif
