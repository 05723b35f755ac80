/*
 * verbs.c - what is done to a region through a descriptor of it: the series' ioctls,
 * and ours.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/control.h"
#include "msharefs.h"

/* Sends the object's descriptor to a server that may not fetch it. It says EPERM once
 * more if that was not the reason. */
static int map_given(int fd, const struct mshare_create *create)
{
    struct msg msg = {
        .op = MSG_MAP,
        .arg = {create->region_offset, create->size, create->prot, create->flags, create->offset}};
    const int object_fd = (int)create->fd;
    int sock = control_connect(fd);
    int err = sock < 0 ? sock : control_call(sock, &msg, &object_fd, 1, NULL);

    if (sock >= 0)
        close(sock);
    errno = -err;
    return err ? -1 : 0;
}

int mshare_map(int fd, uint64_t region_offset, uint64_t size, int prot, int flags, int object_fd,
               uint64_t offset)
{
    struct mshare_create create = {
        .region_offset = region_offset,
        .size = size,
        .offset = offset,
        .prot = (uint32_t)prot,
        .flags = (uint32_t)flags,
        .fd = (uint32_t)object_fd,
    };

    const int result = ioctl(fd, MSHAREFS_CREATE_MAPPING, &create);

    if (!result || errno != EPERM || flags & MAP_ANONYMOUS)
        return result;
    return map_given(fd, &create);
}

int mshare_unmap(int fd, uint64_t region_offset, uint64_t size)
{
    struct mshare_unmap range = {.region_offset = region_offset, .size = size};

    return ioctl(fd, MSHAREFS_UNMAP, &range);
}

int mshare_protect(int fd, uint64_t region_offset, uint64_t size, int prot)
{
    struct mshare_protect change = {
        .region_offset = region_offset, .size = size, .prot = (uint32_t)prot};

    return ioctl(fd, MSHAREFS_PROTECT, &change);
}

int mshare_stat(int fd, struct mshare_stat *st)
{
    struct msg msg = {.op = MSG_STAT};
    int sock = control_connect(fd);
    int err = sock < 0 ? sock : control_call(sock, &msg, NULL, 0, NULL);

    if (sock >= 0)
        close(sock);
    if (err) {
        errno = -err;
        return -1;
    }
    memcpy(st, msg.text, sizeof *st);
    return 0;
}

_Static_assert(sizeof(struct mshare_stat) <= MSG_TEXT, "the answer fits a message");
