/*
 * mounts.h - whether a file can be a region, by the mount that it is on.
 */
#ifndef MSHARE_PRELOAD_MOUNTS_H
#define MSHARE_PRELOAD_MOUNTS_H

#include <stdbool.h>

/* Whether the file open at `fd` is on a mount of ours, or may be: only then may we ask the file.
 * Asks no server, which might be slow, or hang. Precondition: no lock held. */
bool preload_may_be_region(int fd);
/* Whether a file is on a tmpfs, by the number of its mount. Its file system is not asked. */
bool preload_in_memory(int fd);

#endif
