/*
 * mounts.h - mounts of ours, and whether a file can be a region, by the mount that it is on.
 */
#ifndef MSHARE_PRELOAD_MOUNTS_H
#define MSHARE_PRELOAD_MOUNTS_H

#include <stdbool.h>
#include <stdint.h>

/* Whether the file open at `fd` is on a mount of ours, or may be: only then may we ask the file.
 * Asks no server, which might be slow, or hang. Precondition: no lock held. */
bool preload_may_be_region(int fd);
/* Whether a file is on a tmpfs, by the number of its mount. Its file system is not asked. */
bool preload_in_memory(int fd);
/* The number of a mount of ours whose root is at a path; 0: there is none. Of `flags` only
 * AT_SYMLINK_NOFOLLOW. Keeps errno. */
uint64_t preload_mount_of_ours(const char *path, int flags);

#endif
