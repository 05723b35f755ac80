/*
 * preload/advice.c - madvise(2), process_madvise(2), msync(2) and mincore(2) of windows.
 *
 * The series leaves advice to the VMA of the attachment. Advice that sets a flag of the
 * VMA is refused for a part of it (EINVAL: the VMA cannot be split), unless the flag is
 * set already; advice that needs memory of the VMA's own is always refused;
 * MADV_DONTNEED unlinks. Source: running v3 kernel. With -o window=inner: inner.h; with
 * -o window=private: alone.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "client/attachments.h"
#include "client/handover.h"
#include "client/present.h"
#include "msharefs.h"
#include "preload/alone.h"
#include "preload/inner.h"
#include "preload/range.h"
#include "preload/sys.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

#ifndef PIDFD_SELF_THREAD /* linux/pidfd.h */
#define PIDFD_SELF_THREAD (-10000)
#define PIDFD_SELF_THREAD_GROUP (-10001)
#endif

/* Newer than the C library's headers: linux/pidfd.h, with the names that it has there. */
struct pidfd_info {
    uint64_t mask, cgroupid;
    uint32_t pid, tgid, ppid, ids[8];
    int32_t exit_code;
};
#define PIDFD_GET_INFO _IOWR(0xFF, 11, struct pidfd_info)

_Static_assert(sizeof(struct pidfd_info) == 64, "as linux/pidfd.h has it first");

static bool is_whole(const struct attachment *att, struct range range)
{
    return (uintptr_t)att->base == range.start && attachment_end(att) == range.end;
}

/* Whether advice is about this process alone, whatever the window is. */
static bool is_own_affair(int advice)
{
    return advice == MADV_DONTFORK || advice == MADV_DOFORK || advice == MADV_DONTDUMP ||
           advice == MADV_KEEPONFORK || advice == MADV_MERGEABLE || advice == MADV_UNMERGEABLE;
}

/* The flags of the VMA after `advice`. */
static unsigned advised(unsigned flags, int advice)
{
    switch (advice) {
    case MADV_NORMAL:
        return flags & ~(unsigned)(ADVICE_RANDOM | ADVICE_SEQUENTIAL);
    case MADV_RANDOM:
        return (flags & ~(unsigned)ADVICE_SEQUENTIAL) | ADVICE_RANDOM;
    case MADV_SEQUENTIAL:
        return (flags & ~(unsigned)ADVICE_RANDOM) | ADVICE_SEQUENTIAL;
    case MADV_DONTFORK:
        return flags | ADVICE_DONTFORK;
    case MADV_DOFORK:
        return flags & ~(unsigned)ADVICE_DONTFORK;
    case MADV_DONTDUMP:
        return flags | ADVICE_DONTDUMP;
    case MADV_HUGEPAGE:
        return (flags & ~(unsigned)ADVICE_NOHUGEPAGE) | ADVICE_HUGEPAGE;
    case MADV_NOHUGEPAGE:
        return (flags & ~(unsigned)ADVICE_HUGEPAGE) | ADVICE_NOHUGEPAGE;
    default:
        return flags;
    }
}

static int set_flags(struct attachment *att, struct range range, int advice)
{
    const unsigned flags = advised(att->advice, advice);

    if (flags == att->advice)
        return 0;
    if (!is_whole(att, range))
        return -EINVAL;
    /* The only advice that changes what a program sees: a child then has no window. */
    if ((advice == MADV_DONTFORK || advice == MADV_DOFORK) &&
        sys_madvise(att->base, att->length, advice))
        return -errno;
    att->advice = flags;
    return 0;
}

/* The caller's links to the quanta of the range go; the next touch makes them again. */
static int unlink_quanta(struct attachment *att, struct range range)
{
    const uint64_t quantum = att->mm.quantum;
    const uint64_t first = attachment_offset(att, range.start) / quantum;
    const uint64_t last = (attachment_offset(att, range.end) - 1) / quantum;
    int err = handover_leave(att); /* or a touch would come back without us */

    if (err)
        return err;
    if (sys_madvise(attachment_at(att, first * quantum), (last + 1 - first) * quantum,
                    MADV_DONTNEED_LOCKED))
        return -errno;
    for (uint64_t i = first; i <= last; i++)
        att->linked[i / 64] &= ~(1ull << i % 64);
    return 0;
}

static int populate(struct attachment *att, struct range range, int needed)
{
    const uint64_t start = attachment_offset(att, range.start),
                   end = attachment_offset(att, range.end);

    if (!(att->prot & needed))
        return -EINVAL;
    return present_pages(att, start, end, NULL) == (end - start) / PAGE_SIZE ? 0 : -EFAULT;
}

static int advise_window(struct attachment *att, struct range range, int advice)
{
    switch (advice) {
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_DONTDUMP:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
        return set_flags(att, range, advice);
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
        return unlink_quanta(att, range);
    case MADV_WILLNEED:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_KEEPONFORK:
        return 0;
    case MADV_COLD:
    case MADV_PAGEOUT: /* the pages that this process has mapped; best effort, as in the kernel */
        sys_madvise((void *)range.start, range.end - range.start, advice);
        return 0;
    case MADV_REMOVE:
        return att->prot & PROT_WRITE ? -EOPNOTSUPP : -EACCES;
    case MADV_POPULATE_READ:
        return populate(att, range, PROT_READ | PROT_WRITE);
    case MADV_POPULATE_WRITE:
        return populate(att, range, PROT_WRITE);
    default: /* FREE, DODUMP, WIPEONFORK, COLLAPSE, GUARD_*, and unknown ones */
        return -EINVAL;
    }
}

/* Shared by the parts of one call: holes do not end it, but are reported at the end. */
struct advice_call {
    int advice; /* or the flags of msync(2) */
    int holes;
};

static int advise(struct attachment *att, struct range range, void *arg)
{
    struct advice_call *call = arg;
    int err;

    if (att && att->private && !(is_own_affair(call->advice) && is_whole(att, range)))
        return alone_advise(att, range, call->advice);
    if (!att) {
        err = sys_madvise((void *)range.start, range.end - range.start, call->advice) ? -errno : 0;
        if (err != -ENOMEM)
            return err;
        call->holes = err;
        return 0;
    }
    attachment_lock(att);
    err = advise_window(att, range, call->advice);
    attachment_unlock(att);
    return err;
}

/* Keeps record of the parts of adopted memory that children of fork() get. */
static void mark_adopted(struct range range, bool stays)
{
    struct attachment *att;

    for (uint64_t at = range.start; (att = attachment_over(at, range.end));
         at = attachment_end(att)) {
        if (!is_adopted(att))
            continue;
        attachment_lock(att);
        if (!pieces_reserve(&att->pieces))
            pieces_mark(&att->pieces, range.start, range.end, stays);
        attachment_unlock(att);
    }
}

static int advise_range(void *addr, size_t length, int advice)
{
    struct advice_call call = {.advice = advice};
    struct range range;
    struct inner inner;
    int err;

    if (!preload_concerns(addr, length, &range))
        return sys_madvise(addr, length, advice);
    err = is_own_affair(advice) ? 0 : inner_of(range, &inner);
    if (err)
        return preload_answer(err < 0 ? err : inner_advise(&inner, advice));
    err = is_own_affair(advice) ? 0 : alone_ready_for(range, advice);
    if (err)
        return preload_answer(err);
    attachments_lock();
    err = preload_parts(range, advise, &call);
    if (!err && (advice == MADV_DONTFORK || advice == MADV_DOFORK))
        mark_adopted(range, advice == MADV_DONTFORK);
    attachments_unlock();
    return preload_answer(err ? err : call.holes);
}

MSHARE_API int madvise(void *addr, size_t length, int advice)
{
    return advise_range(addr, length, advice);
}

static bool is_own(int pidfd)
{
    struct pidfd_info info = {.mask = 0};

    return pidfd == PIDFD_SELF_THREAD || pidfd == PIDFD_SELF_THREAD_GROUP ||
           (!ioctl(pidfd, PIDFD_GET_INFO, &info) && (pid_t)info.tgid == getpid());
}

/* Of this process; that of another has no windows that we could know. As in the kernel, ranges
 * after one that fails are left alone, and those before it count. */
MSHARE_API ssize_t process_madvise(int pidfd, const struct iovec *ranges, size_t count, int advice,
                                   unsigned flags)
{
    struct iovec own[IOV_MAX], to = {own, count * sizeof *own};
    struct iovec from = {(void *)ranges, to.iov_len};
    const int saved = errno;
    ssize_t done = 0;

    if (flags || !count || count > IOV_MAX || !attachments_near(0, UINT64_MAX) || !is_own(pidfd) ||
        process_vm_readv(getpid(), &to, 1, &from, 1, 0) != (ssize_t)to.iov_len) {
        errno = saved;
        return sys_syscall(SYS_process_madvise, pidfd, (long)ranges, (long)count, advice, flags, 0);
    }
    errno = saved;
    for (size_t i = 0; i < count; i++) {
        if (advise_range(own[i].iov_base, own[i].iov_len, advice))
            return done ? done : -1;
        done += (ssize_t)own[i].iov_len;
    }
    return done;
}

static int sync_part(struct attachment *att, struct range range, void *arg)
{
    struct advice_call *call = arg;

    if (att) /* a region file has no fsync */
        return call->advice & MS_SYNC ? -EINVAL : 0;
    if (!sys_msync((void *)range.start, range.end - range.start, call->advice))
        return 0;
    if (errno != ENOMEM)
        return -errno;
    call->holes = -ENOMEM;
    return 0;
}

MSHARE_API int msync(void *addr, size_t length, int flags)
{
    const int known = MS_ASYNC | MS_SYNC | MS_INVALIDATE;
    struct advice_call call = {.advice = flags};
    struct range range;
    struct inner inner;
    int err;

    pthread_testcancel();
    if (flags & ~known || (flags & MS_ASYNC && flags & MS_SYNC) ||
        !preload_concerns(addr, length, &range))
        return sys_msync(addr, length, flags);
    err = inner_of(range, &inner);
    if (err)
        return preload_answer(err < 0 ? err : inner_verb(&inner, MSHAREFS_SYNC, (unsigned)flags));
    attachments_lock();
    err = preload_parts(range, sync_part, &call);
    attachments_unlock();
    return preload_answer(err ? err : call.holes);
}

/* mincore(2): the place for the answer for a part. */
struct core_call {
    unsigned char *vec;
    uint64_t start;
};

#define CHUNK 1024u /* pages at a time */

/* The program's memory may itself be a window, so it must not be touched with a lock held. */
static int copy_out(unsigned char *to, unsigned char *from, size_t size)
{
    const struct iovec local = {from, size}, remote = {to, size};

    return process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)size ? 0 : -EFAULT;
}

static int core_part(struct attachment *att, struct range range, void *arg)
{
    const struct core_call *call = arg;
    unsigned char *vec = call->vec + (range.start - call->start) / PAGE_SIZE, some[CHUNK];
    int err = 0;

    if (!att)
        return sys_mincore((void *)range.start, range.end - range.start, vec) ? -errno : 0;
    for (uint64_t at = range.start, next; at < range.end && !err; at = next, vec += CHUNK) {
        next = range.end - at < CHUNK * PAGE_SIZE ? range.end : at + CHUNK * PAGE_SIZE;
        attachment_lock(att);
        present_pages(att, attachment_offset(att, at), attachment_offset(att, next), some);
        attachment_unlock(att);
        err = copy_out(vec, some, (next - at) / PAGE_SIZE);
    }
    return err;
}

static int core_inner(struct inner inner, unsigned char *vec)
{
    const uint64_t end = inner.offset + inner.size;
    unsigned char some[MSHARE_QUERY_PAGES];
    int err = 0;

    for (; !err && inner.offset < end; inner.offset += inner.size) {
        const uint64_t left = end - inner.offset;

        inner.size = left < sizeof some * PAGE_SIZE ? left : sizeof some * PAGE_SIZE;
        err = inner_query(&inner, some);
        if (!err)
            err = copy_out(vec, some, inner.size / PAGE_SIZE);
        vec += inner.size / PAGE_SIZE;
    }
    return err;
}

MSHARE_API int mincore(void *addr, size_t length, unsigned char *vec)
{
    struct range range;
    struct inner inner;
    int err;

    if (!preload_concerns(addr, length, &range))
        return sys_mincore(addr, length, vec);
    err = inner_of(range, &inner);
    if (err)
        return preload_answer(err < 0 ? err : core_inner(inner, vec));
    struct core_call call = {vec, range.start};
    attachments_lock();
    err = preload_parts(range, core_part, &call);
    attachments_unlock();
    return preload_answer(err);
}
