/* procmap.c - the mappings of a process; see procmap.h. */
#define _GNU_SOURCE
#include "core/procmap.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "core/control.h"

#define QUERY_COVERING_OR_NEXT 0x10u
#define QUERY_FILE_BACKED 0x20u

int procmap_open(const char *path)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    return fd < 0 ? -errno : control_hide_fd(fd);
}

static int query(int fd, uint64_t at, uint64_t flags, struct procmap_query *map)
{
    *map = (struct procmap_query){
        .size = sizeof *map, .flags = QUERY_COVERING_OR_NEXT | flags, .addr = at};
    return ioctl(fd, PROCMAP_QUERY_CALL, map) ? -errno : 0;
}

int procmap_look(int fd, uint64_t at, struct procmap_query *map) { return query(fd, at, 0, map); }

int procmap_next(int fd, uint64_t at, uint64_t *start, uint64_t *end)
{
    struct procmap_query map;
    const int err = query(fd, at, PROCMAP_SHARED | QUERY_FILE_BACKED, &map);

    if (!err) {
        *start = map.start;
        *end = map.end;
    }
    return err;
}

int procmap_covering(int fd, uint64_t at, struct procmap_query *found)
{
    const int err = procmap_look(fd, at, found);

    return !err && found->start > at ? -ENOENT : err;
}
