/* procmap.c - the mappings of a process; see procmap.h. */
#define _GNU_SOURCE
#include "core/procmap.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "core/control.h"

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
    struct procmap_query query = {
        .size = sizeof query,
        .flags = QUERY_COVERING_OR_NEXT | QUERY_SHARED | QUERY_FILE_BACKED,
        .addr = at,
    };

    if (ioctl(fd, PROCMAP_QUERY_CALL, &query))
        return -errno;
    *start = query.start;
    *end = query.end;
    return 0;
}
