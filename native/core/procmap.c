/* procmap.c - the mappings of a process; see procmap.h. */
#define _GNU_SOURCE
#include "core/procmap.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "core/control.h"

/* linux/fs.h, since 6.11. */
struct query {
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

#define QUERY _IOWR('f', 17, struct query)
#define QUERY_SHARED 0x08u
#define QUERY_COVERING_OR_NEXT 0x10u
#define QUERY_FILE_BACKED 0x20u

int procmap_open(const char *path)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    return fd < 0 ? -errno : control_hide_fd(fd);
}

int procmap_next(int fd, uint64_t at, uint64_t *start, uint64_t *end)
{
    struct query query = {
        .size = sizeof query,
        .flags = QUERY_COVERING_OR_NEXT | QUERY_SHARED | QUERY_FILE_BACKED,
        .addr = at,
    };

    if (ioctl(fd, QUERY, &query))
        return -errno;
    *start = query.start;
    *end = query.end;
    return 0;
}
