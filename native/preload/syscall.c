/*
 * preload/syscall.c - syscall(2), for calls that have no function in the C library, or had
 * none when the program was written; and mbind(2), which has none to this day.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "client/attachments.h"
#include "client/bare.h"
#include "msharefs.h"
#include "preload/filter.h"
#include "preload/inner.h"
#include "preload/range.h"
#include "preload/sys.h"
#include "preload/unmap.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

/* The functions of the other files. In this library their plain names mean the kernel's
 * calls; with --wrap the functions themselves have this name. */
#define OURS(name) extern __typeof__(name) our_##name __asm__("__real_" #name)
OURS(mmap);
OURS(munmap);
OURS(mprotect);
OURS(pkey_mprotect);
OURS(mremap);
OURS(remap_file_pages);
OURS(mseal);
OURS(madvise);
OURS(msync);
OURS(mincore);
OURS(mlock);
OURS(mlock2);
OURS(munlock);
OURS(mlockall);
OURS(close);
OURS(close_range);
OURS(dup2);
OURS(dup3);
OURS(lseek);
OURS(ioctl);

struct mbind_call {
    struct memory_policy policy;
    long mode, nodes, max_node, flags;
};

/* The policy of a whole window is Linux's business; a part of a window cannot have a policy
 * of its own. */
static int bind_part(struct attachment *att, struct range range, void *arg)
{
    const struct mbind_call *call = arg;
    const bool whole = att && range.start == (uintptr_t)att->base &&
                       range.end == attachment_end(att);

    if (att && !whole)
        return call->policy.mode == att->policy.mode && call->policy.nodes == att->policy.nodes
                   ? 0
                   : -EINVAL;
    if (sys_syscall(SYS_mbind, (long)range.start, (long)(range.end - range.start), call->mode,
                    call->nodes, call->max_node, call->flags))
        return -errno;
    if (att)
        att->policy = call->policy;
    return 0;
}

static long bind_memory(long addr, long length, struct mbind_call call)
{
    struct range range;
    struct inner inner;
    int err;

    if (!preload_concerns((void *)addr, (size_t)length, &range))
        return sys_syscall(SYS_mbind, addr, length, call.mode, call.nodes, call.max_node,
                           call.flags);
    err = inner_of(range, &inner);
    if (err)
        return preload_answer(
            err < 0 ? err
                    : inner_mbind(&inner, (int)call.mode, (const unsigned long *)call.nodes,
                                  (unsigned long)call.max_node, (unsigned)call.flags));
    call.policy.mode = (int)call.mode;
    if (call.nodes && call.max_node)
        call.policy.nodes = *(const unsigned long *)call.nodes;
    attachments_lock();
    err = preload_parts(range, bind_part, &call);
    attachments_unlock();
    return preload_answer(err);
}

/* A child with a copy of our memory, which has run no handler of fork(3): see bare.c. With a stack
 * of its own it does not come back here. */
static long cloned(long number, long first, long second, long result)
{
    uint64_t flags = (uint64_t)first;

    if (result)
        return result;
    if (number == SYS_clone3 && (size_t)second >= sizeof flags)
        flags = *(const uint64_t *)first; /* struct clone_args */
    if (number == SYS_fork || !(flags & CLONE_VM))
        bare_begin();
    return 0;
}

/* Not variadic as in the header: arguments that the program does not pass are not used. */
MSHARE_API long preload_syscall(long number, long a, long b, long c, long d, long e,
                                long f) __asm__("syscall");

long preload_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    filter_see(number, a);
    switch (number) {
    case SYS_mmap:
        return (long)our_mmap((void *)a, (size_t)b, (int)c, (int)d, (int)e, (off_t)f);
    case SYS_shmat:
        return (long)shmat((int)a, (const void *)b, (int)c);
    case SYS_munmap:
        return our_munmap((void *)a, (size_t)b);
    case SYS_mprotect:
        return our_mprotect((void *)a, (size_t)b, (int)c);
    case SYS_pkey_mprotect:
        return our_pkey_mprotect((void *)a, (size_t)b, (int)c, (int)d);
    case SYS_mremap:
        return (long)our_mremap((void *)a, (size_t)b, (size_t)c, (int)d, (void *)e);
    case SYS_remap_file_pages:
        return our_remap_file_pages((void *)a, (size_t)b, (int)c, (size_t)d, (int)e);
    case SYS_mseal:
        return our_mseal((void *)a, (size_t)b, (unsigned long)c);
    case SYS_madvise:
        return our_madvise((void *)a, (size_t)b, (int)c);
    case SYS_process_madvise:
        return process_madvise((int)a, (const struct iovec *)b, (size_t)c, (int)d, (unsigned)e);
    case SYS_msync:
        return our_msync((void *)a, (size_t)b, (int)c);
    case SYS_mincore:
        return our_mincore((void *)a, (size_t)b, (unsigned char *)c);
    case SYS_mlock:
        return our_mlock((void *)a, (size_t)b);
    case SYS_mlock2:
        return our_mlock2((void *)a, (size_t)b, (unsigned)c);
    case SYS_munlock:
        return our_munlock((void *)a, (size_t)b);
    case SYS_mlockall:
        return our_mlockall((int)a);
    case SYS_mbind:
        return bind_memory(a, b,
                           (struct mbind_call){.mode = c, .nodes = d, .max_node = e, .flags = f});
    case SYS_close:
        return our_close((int)a);
    case SYS_close_range:
        return our_close_range((unsigned)a, (unsigned)b, (int)c);
    case SYS_dup2:
        return our_dup2((int)a, (int)b);
    case SYS_dup3:
        return our_dup3((int)a, (int)b, (int)c);
    case SYS_mount:
        return mount((const char *)a, (const char *)b, (const char *)c, (unsigned long)d,
                     (const void *)e);
    case SYS_umount2:
        return umount2((const char *)a, (int)b);
    case SYS_lseek:
        return our_lseek((int)a, (off_t)b, (int)c);
    case SYS_ioctl:
        return our_ioctl((int)a, (unsigned long)b, c);
    case SYS_fork:
    case SYS_clone:
    case SYS_clone3:
        return cloned(number, a, b, sys_syscall(number, a, b, c, d, e, f));
    default:
        return sys_syscall(number, a, b, c, d, e, f);
    }
}
