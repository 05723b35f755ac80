/* uffd.c - calls on a userfaultfd; see uffd.h. */
#define _GNU_SOURCE
#include "core/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/fd.h"
#include "core/layout.h"
#include "core/procmap.h"

/* The kernel says EAGAIN while a mapping of the client changes. */
#define AGAIN_MAX 1000
/* Calls where we may not see the mappings: some milliseconds. */
#define HALVES_MAX 16384u

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

int uffd_unwatch(int uffd, uint64_t addr, uint64_t size)
{
    struct uffdio_range range = {addr, size};

    return ioctl(uffd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
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

/* Something in the range is not ours to change: it is not watched, or cannot be (EPERM: a file
 * that is open for reading only), or another userfaultfd watches it already. */
static bool not_ours(int err)
{
    return err == -ENOENT || err == -EINVAL || err == -EBUSY || err == -EPERM;
}

static int change_range(int uffd, uint64_t addr, uint64_t size, enum uffd_change change)
{
    unsigned again = 0;
    int err;

    do
        err = change_once(uffd, addr, size, change);
    while (err == -EAGAIN && again++ < AGAIN_MAX);
    return err;
}

/* Makes the change mapping by mapping. */
static int64_t change_mappings(int uffd, int maps, uint64_t addr, uint64_t size,
                               enum uffd_change change, unsigned *calls)
{
    uint64_t at = addr, start, end, refused_start = 0, refused_end = 0;
    unsigned again = 0;

    for (; at < addr + size && *calls; --*calls) {
        int err = procmap_next(maps, at, &start, &end);

        if (err)
            return err == -ENOENT ? UFFD_NOTHING_MORE : err;
        if (start >= addr + size)
            return (int64_t)(start - addr);
        start = start > at ? start : at;
        end = end < addr + size ? end : addr + size;
        if (start == refused_start && end == refused_end) {
            at = end; /* it is still there, so it was refused: it is another mapping, not ours */
            again = 0;
            continue;
        }
        err = change_range(uffd, start, end - start, change);
        if (!err) {
            at = end;
            again = 0;
        } else if (!not_ours(err) || again++ == AGAIN_MAX) {
            return not_ours(err) ? -EBUSY : err;
        } else {
            refused_start = start;
            refused_end = end;
        }
    }
    return (int64_t)(at - addr);
}

/* Makes the change by halves, and halves of halves, until mappings that are not ours are left out,
 * if we may not see the mappings of the process. */
static int change_halves(int uffd, uint64_t addr, uint64_t size, enum uffd_change change,
                         unsigned *left)
{
    const uint64_t half = size / 2 & ~(PAGE_SIZE - 1);
    int err;

    if (!*left)
        return -EBUSY;
    --*left;
    err = change_range(uffd, addr, size, change);
    if (err && !not_ours(err))
        return err;
    if (!err || !half)
        return 0;
    err = change_halves(uffd, addr, half, change, left);
    return err ? err : change_halves(uffd, addr + half, size - half, change, left);
}

static int64_t change_parts(int uffd, int maps, uint64_t addr, uint64_t size,
                            enum uffd_change change, unsigned *calls)
{
    unsigned left = HALVES_MAX;
    int64_t done = -ENOTTY;

    if (maps >= 0)
        done = change_mappings(uffd, maps, addr, size, change, calls);
    if (done != -ENOTTY && done != -EACCES && done != -ESRCH)
        return done;
    *calls = 0;
    done = change_halves(uffd, addr, size, change, &left);
    return done ? done : (int64_t)size;
}

/* `path`, if it is not NULL, is opened when it is needed, in the place of `maps`. */
static int64_t change(int uffd, const char *path, int maps, uint64_t addr, uint64_t size,
                      enum uffd_change kind, unsigned *calls)
{
    int64_t done;

    if (addr >= HOST_END || size > HOST_END - addr) /* no address of a window */
        return UFFD_NOTHING_MORE;
    done = change_range(uffd, addr, size, kind);
    *calls -= *calls > 0;
    if (!done)
        return (int64_t)size;
    /* A part of the window, or all of it, may be unmapped or somebody else's mapping by now. */
    if (not_ours((int)done) && uffd_alive(uffd)) {
        maps = path ? procmap_open(path) : maps;
        done = change_parts(uffd, maps, addr, size, kind, calls);
        if (path)
            fd_close(maps);
    }
    if (done < 0 && !uffd_alive(uffd)) /* exited, or another program by exec */
        return UFFD_NOTHING_MORE;
    return done;
}

int64_t uffd_change(int uffd, const char *maps, uint64_t addr, uint64_t size, enum uffd_change kind,
                    unsigned *calls)
{
    return change(uffd, maps, -1, addr, size, kind, calls);
}

int64_t uffd_change_by(int uffd, int maps, uint64_t addr, uint64_t size, enum uffd_change kind,
                       unsigned *calls)
{
    return change(uffd, NULL, maps, addr, size, kind, calls);
}
