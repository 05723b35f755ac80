/*
 * preload/mmap.c - mmap(2): that of a region file attaches, that of anonymous shared memory
 * may adopt it, and with MAP_FIXED it may end attachments.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/api.h"
#include "client/attachments.h"
#include "client/detach.h"
#include "msharefs.h"
#include "preload/adopt.h"
#include "preload/range.h"
#include "preload/sys.h"

#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000u
#endif
#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

/* Mounts that are not FUSE, by their numbers, which are never used twice; one in each
 * place. */
#define MOUNTS 64
static _Atomic uint64_t other_mounts[MOUNTS];

/* Whether `fd` is a file of a FUSE mount: only then it can be a region. */
static bool may_be_region(int fd)
{
    struct statx file;
    struct statfs fs;

    /* DONT_SYNC: without asking the server of the mount, whatever it is. */
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID_UNIQUE, &file))
        return false;
    if (file.stx_dev_major) /* on a device, so not FUSE */
        return false;
    const bool known = file.stx_mask & STATX_MNT_ID_UNIQUE;
    const uint64_t mount = known ? file.stx_mnt_id : 0;
    _Atomic uint64_t *other = &other_mounts[mount % MOUNTS];

    if (known && atomic_load_explicit(other, memory_order_relaxed) == mount)
        return false;
    if (fstatfs(fd, &fs))
        return false;
    if (fs.f_type == FUSE_SUPER_MAGIC)
        return true;
    if (known)
        atomic_store_explicit(other, mount, memory_order_relaxed);
    return false;
}

struct mmap_call {
    void *addr;
    size_t length;
    int prot, flags, fd;
    off_t offset;
    void *got;
};

static int map(void *arg)
{
    struct mmap_call *call = arg;

    call->got = sys_mmap(call->addr, call->length, call->prot, call->flags, call->fd, call->offset);
    return call->got == MAP_FAILED ? -errno : 0;
}

/* A mapping that has nothing to do with regions, except that it may replace one. */
static void *map_plain(struct mmap_call *call)
{
    const bool replaces = call->flags & MAP_FIXED && !(call->flags & MAP_FIXED_NOREPLACE);
    struct range range;
    int err;

    if (!replaces || !preload_concerns(call->addr, call->length, &range))
        return sys_mmap(call->addr, call->length, call->prot, call->flags, call->fd, call->offset);
    attachments_lock();
    err = detach_replace(range.start, range.end, map, call);
    attachments_unlock();
    return preload_answer(err) ? MAP_FAILED : call->got;
}

/* The checks that Linux makes before it asks the file; if they fail, the call is the kernel's. */
static bool kernel_refuses(const struct mmap_call *call)
{
    return call->offset % (off_t)PAGE_SIZE || call->flags & MAP_HUGETLB || !call->length ||
           call->length > HOST_END;
}

static void *map_region(struct mmap_call *call)
{
    const struct attach_request request = {
        .addr = call->addr,
        .length = call->length,
        .offset = (uint64_t)call->offset,
        .prot = call->prot,
        .flags = call->flags,
        .way = ATTACH_PRELOAD,
    };
    void *base;
    int err = api_attach(call->fd, &request, &base);

    if (err == -ENOTTY) /* some other file */
        return map_plain(call);
    return preload_answer(err) ? MAP_FAILED : base;
}

MSHARE_API void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    struct mmap_call call = {addr, length, prot, flags, fd, offset, MAP_FAILED};

    if (flags & MAP_ANONYMOUS) {
        if (preload_adopt(addr, length, prot, flags, &call.got))
            return call.got;
    } else if (fd >= 0 && !kernel_refuses(&call) && may_be_region(fd)) {
        return map_region(&call);
    }
    return map_plain(&call);
}

/* With a 64-bit off_t both functions are one. */
MSHARE_API void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));
