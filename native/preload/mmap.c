/*
 * preload/mmap.c - mmap(2): that of a region file attaches, that of anonymous shared memory
 * may adopt it, that of other shared memory may be told, and with MAP_FIXED it may end attachments.
 * With MAP_SHARED_PT it is shared_pt.c's.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "client/api.h"
#include "client/attachments.h"
#include "client/detach.h"
#include "msharefs.h"
#include "preload/adopt.h"
#include "preload/alone.h"
#include "preload/inner.h"
#include "preload/mapping.h"
#include "preload/mounts.h"
#include "preload/range.h"
#include "preload/shared_pt.h"
#include "preload/sys.h"
#include "preload/tell.h"

struct replacement {
    const struct mmap_call *call;
    void *got;
};

static void *map_as_asked(const struct mmap_call *call)
{
    return sys_mmap(call->addr, call->length, call->prot, call->flags, call->fd, call->offset);
}

static int replace(void *arg)
{
    struct replacement *replacement = arg;

    replacement->got = map_as_asked(replacement->call);
    return replacement->got == MAP_FAILED ? -errno : 0;
}

void *preload_map_plain(const struct mmap_call *call)
{
    const bool replaces = call->flags & MAP_FIXED && !(call->flags & MAP_FIXED_NOREPLACE);
    struct replacement replacement = {call, MAP_FAILED};
    struct range range;
    int err;

    if (!replaces || !preload_concerns(call->addr, call->length, &range))
        return map_as_asked(call);
    err = alone_ready(range, PRIVATE_UNMAP);
    if (err)
        return preload_answer(err) ? MAP_FAILED : NULL;
    attachments_lock();
    err = detach_replace(range.start, range.end, replace, &replacement);
    attachments_unlock();
    return preload_answer(err) ? MAP_FAILED : replacement.got;
}

/* The checks that Linux makes before it asks the file; if they fail, the call is the kernel's. */
static bool kernel_refuses(const struct mmap_call *call)
{
    return call->offset % (off_t)PAGE_SIZE || call->flags & MAP_HUGETLB || !call->length ||
           call->length > HOST_END;
}

static void *map_region(const struct mmap_call *call)
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
        return preload_map_plain(call);
    return preload_answer(err) ? MAP_FAILED : base;
}

/* Whether the call is for a part of a window whose region it changes; the answer is in *err. */
static bool map_inner(const struct mmap_call *call, int *err)
{
    struct range range;
    struct inner inner;

    if (!(call->flags & MAP_FIXED) || call->flags & MAP_FIXED_NOREPLACE ||
        !preload_concerns(call->addr, call->length, &range))
        return false;
    *err = inner_part_of(range, &inner);
    if (*err > 0) /* the kernel looks at the offset first, whatever is to be mapped */
        *err = call->offset % (off_t)PAGE_SIZE ? -EINVAL : inner_map(&inner, call);
    else if (!*err)
        return false;
    return true;
}

static void *map(struct mmap_call call)
{
    void *got;
    int err;

    if (shared_pt_take(&call, &got))
        return got;
    if (map_inner(&call, &err))
        return preload_answer(err) ? MAP_FAILED : call.addr;
    if (call.flags & MAP_ANONYMOUS)
        return adopt_wanted(&call) ? adopt_map(&call) : preload_map_plain(&call);
    if (call.fd >= 0 && !kernel_refuses(&call) && preload_may_be_region(call.fd))
        return map_region(&call);
    if (adopt_zero(&call)) {
        call.flags |= MAP_ANONYMOUS;
        call.fd = -1;
        return adopt_map(&call);
    }
    got = preload_map_plain(&call);
    if (got != MAP_FAILED)
        tell_file(&call, got);
    return got;
}

MSHARE_API void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    const int saved = errno;
    void *got = map((struct mmap_call){addr, length, prot, flags, fd, offset, false});

    if (got != MAP_FAILED) /* as a system call leaves it */
        errno = saved;
    return got;
}

/* With a 64-bit off_t both functions are one. */
MSHARE_API void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));
