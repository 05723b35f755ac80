/*
 * check.c - the checks of mmap(2) of a region file after a place was found.
 *
 * The order is that of do_mmap() on Linux 6.18, tried on memfds and files: with two
 * things wrong a program sees the errno of the first.
 */
#define _GNU_SOURCE
#include "client/check.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>

/* The flags that MAP_SHARED_VALIDATE knows for any file: Linux, LEGACY_MAP_MASK. */
#define KNOWN_FLAGS                                                                          \
    (MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_DENYWRITE | MAP_EXECUTABLE | \
     MAP_GROWSDOWN | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK |  \
     MAP_HUGETLB | MAP_32BIT | 0x80 /* MAP_ABOVE4G */ | 0x4000000 /* MAP_UNINITIALIZED */ |  \
     21 << MAP_HUGE_SHIFT | 30 << MAP_HUGE_SHIFT)

/* Whether that much may be locked. Finds out by locking as much memory without pages.
 * -EPERM: nothing may be locked. -EAGAIN: not that much. */
static int check_lockable(uint64_t length)
{
    void *probe = mmap(NULL, length, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_LOCKED, -1, 0);

    if (probe != MAP_FAILED)
        munmap(probe, length);
    else if (errno == EPERM || errno == EAGAIN)
        return -errno;
    return 0;
}

static int check_exec(int fd)
{
    struct statvfs fs;

    return !fstatvfs(fd, &fs) && fs.f_flag & ST_NOEXEC ? -EPERM : 0;
}

int check_attach(int fd, int mode, const struct attach_request *request, uint64_t length)
{
    const int flags = request->flags;
    int err = flags & MAP_LOCKED ? check_lockable(length) : 0;

    if (err)
        return err;
    if (request->offset / PAGE_SIZE > ((uint64_t)INT64_MAX - length) / PAGE_SIZE)
        return -EOVERFLOW;
    if ((flags & MAP_TYPE) == MAP_SHARED_VALIDATE &&
        (unsigned)flags & ~(unsigned)(KNOWN_FLAGS | MAP_SHARED_VALIDATE))
        return -EOPNOTSUPP;
    if (mode == O_WRONLY || (mode == O_RDONLY && request->prot & PROT_WRITE))
        return -EACCES;
    if (request->prot & PROT_EXEC && (err = check_exec(fd)))
        return err;
    return flags & MAP_GROWSDOWN ? -EINVAL : 0;
}
