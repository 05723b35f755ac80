/*
 * window.h - the place in the address space where a region is attached.
 */
#ifndef MSHARE_WINDOW_H
#define MSHARE_WINDOW_H

#include <stdint.h>

/*
 * Reserves `size` bytes of address space at a multiple of `quantum`: at `addr`
 * with MAP_FIXED or MAP_FIXED_NOREPLACE in `flags`; otherwise near the hint `addr`,
 * or anywhere. Puts the address in *base. EINVAL: misaligned fixed address. EEXIST,
 * ENOMEM: as from mmap(2). With MAP_FIXED nothing is reserved: the caller's own
 * MAP_FIXED mapping replaces the old ones in one step.
 */
int window_reserve(void *addr, uint64_t size, uint64_t quantum, int flags, uint8_t **base);

#endif
