/*
 * preload/sysv.c - shmat(2): the server is told of a segment that is attached, and with
 * SHM_REMAP it may end attachments of regions, as mmap(2) does with MAP_FIXED.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include "client/attachments.h"
#include "client/detach.h"
#include "msharefs.h"
#include "preload/alone.h"
#include "preload/ledger.h"
#include "preload/range.h"
#include "preload/sys.h"
#include "preload/tell.h"

struct attach {
    int id, flags;
    const void *addr;
    void *got;
};

/* Its size in bytes; 0: there is none, or it is not the program's to know. */
static uint64_t size_of(int id)
{
    const int saved = errno;
    struct shmid_ds found;
    const uint64_t size = shmctl(id, IPC_STAT, &found) ? 0 : found.shm_segsz;

    errno = saved;
    return size;
}

static int attach_segment(void *arg)
{
    struct attach *call = arg;

    call->got = (void *)sys_syscall(SYS_shmat, call->id, (long)call->addr, call->flags, 0, 0, 0);
    if (call->got == (void *)-1)
        return -errno;
    if (call->flags & SHM_REMAP)
        ledger_changed(call->got, size_of(call->id), LEDGER_MUNMAP);
    return 0;
}

/* Where a segment that replaces windows comes to be. */
static bool replaces(const struct attach *call, struct range *range)
{
    const uintptr_t round = call->flags & SHM_RND ? (uintptr_t)SHMLBA - 1 : 0;
    const void *start = (const void *)((uintptr_t)call->addr & ~round);
    const uint64_t size = call->addr && call->flags & SHM_REMAP ? size_of(call->id) : 0;

    return size && preload_concerns(start, size, range);
}

MSHARE_API void *shmat(int id, const void *addr, int flags)
{
    struct attach call = {id, flags, addr, (void *)-1};
    struct range range;
    int err;

    if (replaces(&call, &range)) {
        err = alone_ready(range, PRIVATE_UNMAP);
        attachments_lock();
        if (!err)
            err = detach_replace(range.start, range.end, attach_segment, &call);
        attachments_unlock();
    } else {
        err = attach_segment(&call);
    }
    if (err) {
        errno = -err;
        return (void *)-1;
    }
    if (tell_wanted(TELL_SYSV, UINT64_MAX - 1)) {
        const uint64_t size = size_of(id);

        if (tell_wanted(TELL_SYSV, size))
            tell_mapped(TELL_SYSV, call.got, size, 0);
    }
    return call.got;
}
