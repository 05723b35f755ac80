/*
 * adopt.h - shared memory that the program makes for itself becomes a region.
 */
#ifndef MSHARE_PRELOAD_ADOPT_H
#define MSHARE_PRELOAD_ADOPT_H

#include <stdbool.h>
#include <stddef.h>

/* Whether mmap(2) with these arguments gave adopted memory; *got is its result. */
bool preload_adopt(void *addr, size_t length, int prot, int flags, void **got);

#endif
