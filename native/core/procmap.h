/*
 * procmap.h - the mappings of a process, one by one: PROCMAP_QUERY of /proc/PID/maps,
 * Linux 6.11.
 */
#ifndef MSHARE_PROCMAP_H
#define MSHARE_PROCMAP_H

#include <linux/ioctl.h>
#include <stdbool.h>
#include <stdint.h>

/* linux/fs.h, since 6.11. */
struct procmap_query {
    uint64_t size;
    uint64_t flags;
    uint64_t addr;
    uint64_t start, end;
    uint64_t vma_flags, vma_page_size, vma_offset;
    uint64_t inode;
    uint32_t dev_major, dev_minor;
    uint32_t vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};

#define PROCMAP_QUERY_CALL _IOWR('f', 17, struct procmap_query)

/* Bits of `vma_flags`. */
#define PROCMAP_READABLE 0x01u
#define PROCMAP_WRITABLE 0x02u
#define PROCMAP_EXECUTABLE 0x04u
#define PROCMAP_SHARED 0x08u

/* Opens a /proc/PID/maps. The descriptor, or -errno. */
int procmap_open(const char *path);
/* Finds the first mapping of any kind that ends above `at`. 0 or -errno; -ENOENT: there is none. */
int procmap_look(int fd, uint64_t at, struct procmap_query *map);
/* Finds the first mapping of a shared file that ends above `at`: its bounds go to *start and
 * *end. 0, or -errno; -ENOENT: there is none. */
int procmap_next(int fd, uint64_t at, uint64_t *start, uint64_t *end);
/* Finds the mapping, of whatever kind, that has the address `at`. 0, or -errno; -ENOENT: there is
 * none. */
int procmap_covering(int fd, uint64_t at, struct procmap_query *found);

#endif
