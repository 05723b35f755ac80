/*
 * preload/mmap.c - mmap(2): that of a region file attaches, that of anonymous shared memory
 * may adopt it, and with MAP_FIXED it may end attachments.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "client/api.h"
#include "client/attachments.h"
#include "client/detach.h"
#include "msharefs.h"
#include "preload/adopt.h"
#include "preload/mounts.h"
#include "preload/range.h"
#include "preload/sys.h"

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
    } else if (fd >= 0 && !kernel_refuses(&call) && preload_may_be_region(fd)) {
        return map_region(&call);
    }
    return map_plain(&call);
}

/* With a 64-bit off_t both functions are one. */
MSHARE_API void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));
