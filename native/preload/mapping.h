/*
 * mapping.h - mmap(2), as the program has called it.
 */
#ifndef MSHARE_PRELOAD_MAPPING_H
#define MSHARE_PRELOAD_MAPPING_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct mmap_call {
    void *addr;
    size_t length;
    int prot, flags, fd;
    off_t offset;
    bool shared_pt; /* MAP_SHARED_PT was among the flags: a region, whatever its size */
};

/* A mapping that has nothing to do with regions, except that it may replace one: its address,
 * or MAP_FAILED and errno. */
void *preload_map_plain(const struct mmap_call *call);

#endif
