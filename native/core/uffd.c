/* uffd.c - calls on a userfaultfd; see uffd.h. */
#define _GNU_SOURCE
#include "core/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/layout.h"

/* The kernel says EAGAIN while a mapping of the client changes. */
#define AGAIN_MAX 1000

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

int uffd_new(int device)
{
    const long flags = O_CLOEXEC | O_NONBLOCK;
    long uffd = device < 0 ? syscall(SYS_userfaultfd, flags)
                           : ioctl(device, USERFAULTFD_IOC_NEW, flags);

    return uffd < 0 ? -errno : (int)uffd;
}

int uffd_watch(int uffd, uint64_t addr, uint64_t size)
{
    struct uffdio_register range = {
        .range = {addr, size},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP,
    };

    return ioctl(uffd, UFFDIO_REGISTER, &range) ? -errno : 0;
}

bool uffd_alive(int uffd)
{
    /* Nothing of ours is ever mapped there, so ENOENT; or ESRCH if the memory is gone. */
    struct uffdio_writeprotect last_page = {.range = {HOST_END - PAGE_SIZE, PAGE_SIZE}};

    return !ioctl(uffd, UFFDIO_WRITEPROTECT, &last_page) || errno != ESRCH;
}

static int change_once(int uffd, uint64_t addr, uint64_t size, enum uffd_change change)
{
    struct uffdio_writeprotect rights = {
        .range = {addr, size},
        .mode = change == UFFD_PROTECT ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };

    if (change == UFFD_WATCH)
        return uffd_watch(uffd, addr, size);
    return ioctl(uffd, UFFDIO_WRITEPROTECT, &rights) ? -errno : 0;
}

/* Something in the range is not ours to change: it is not watched, or cannot be, or another
 * userfaultfd watches it already. */
static bool not_ours(int err) { return err == -ENOENT || err == -EINVAL || err == -EBUSY; }

/* A part of the window may be somebody else's mapping by now: then halves, and
 * halves of halves, until that part is left out. */
int uffd_change(int uffd, uint64_t addr, uint64_t size, enum uffd_change change)
{
    const uint64_t half = size / 2 & ~(PAGE_SIZE - 1);
    unsigned again = 0;
    int err;

    do
        err = change_once(uffd, addr, size, change);
    while (err == -EAGAIN && again++ < AGAIN_MAX);
    if (err && !uffd_alive(uffd)) /* the process has exited, or become another program by exec */
        return 0;
    if (!not_ours(err))
        return err;
    if (!half)
        return 0;
    err = uffd_change(uffd, addr, half, change);
    return err ? err : uffd_change(uffd, addr + half, size - half, change);
}
