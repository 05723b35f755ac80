/*
 * procmap.h - the mappings of a process, one by one: PROCMAP_QUERY of /proc/PID/maps,
 * Linux 6.11.
 */
#ifndef MSHARE_PROCMAP_H
#define MSHARE_PROCMAP_H

#include <stdint.h>

/* Opens a /proc/PID/maps. The descriptor, or -errno. */
int procmap_open(const char *path);
/* Finds the first mapping of a shared file that ends above `at`: its bounds go to *start and
 * *end. 0, or -errno; -ENOENT: there is none. */
int procmap_next(int fd, uint64_t at, uint64_t *start, uint64_t *end);

#endif
