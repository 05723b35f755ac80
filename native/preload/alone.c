/* alone.c - ordinary calls on a window that are the process's own; see alone.h. */
#define _GNU_SOURCE
#include "preload/alone.h"

#include <errno.h>
#include <sys/mman.h>
#include <time.h>

#include "client/attachments.h"
#include "core/control.h"
#include "preload/sys.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef PROT_SEM
#define PROT_SEM 8 /* means nothing on x86 */
#endif

/* A change of the region may have to wait for other processes. */
#define BUSY_NS 1000000

/* What to ask of each window. */
struct question {
    struct range range;
    int call, advice; /* the second where the first is PRIVATE_ADVICE */
};

static bool covers(struct range range, const struct attachment *att)
{
    return range.start <= (uintptr_t)att->base && attachment_end(att) <= range.end;
}

/* What Linux has for shared memory, and what does not change what others see. */
static bool is_advice(int advice)
{
    switch (advice) {
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_WILLNEED:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
    case MADV_COLD:
    case MADV_PAGEOUT:
    case MADV_REMOVE:
    case MADV_POPULATE_READ:
    case MADV_POPULATE_WRITE:
        return true;
    default:
        return false;
    }
}

static int lacking(struct attachment *att, uint64_t start, uint64_t end, int advice)
{
    const int needed = advice == MADV_POPULATE_READ ? PROT_READ : PROT_WRITE;

    if (advice == MADV_REMOVE)
        return private_lacks(att, start, end, needed) ? -EACCES : -EOPNOTSUPP;
    if (advice != MADV_POPULATE_READ && advice != MADV_POPULATE_WRITE)
        return 0;
    return private_lacks(att, start, end, needed) ? -EINVAL : 0;
}

static int look(struct attachment *att, struct range range, void *arg)
{
    const struct question *question = arg;
    const int call = question->call;
    int err;

    if (!att || !att->private)
        return 0;
    if (call == ALONE_REFUSED || (call >= 0 && call & ~(int)(VMA_PROT | PROT_SEM)) ||
        (call == PRIVATE_ADVICE && !is_advice(question->advice)))
        return -EINVAL;
    if (call == PRIVATE_UNMAP && covers(question->range, att)) /* detached, whatever is in it */
        return 0;
    const uint64_t start = attachment_offset(att, range.start),
                   end = attachment_offset(att, range.end);

    err = private_look(att, start, end, call);
    return err || call != PRIVATE_ADVICE ? err : lacking(att, start, end, question->advice);
}

static int ready(struct question question)
{
    const int64_t deadline = control_deadline(CONTROL_TIMEOUT_MS);
    const struct timespec rest = {0, BUSY_NS};
    int err;

    for (;;) {
        attachments_lock();
        err = preload_parts(question.range, look, &question);
        attachments_unlock();
        if (err != -EAGAIN)
            return err;
        if (control_deadline(0) >= deadline)
            return -EBUSY;
        clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, NULL);
    }
}

int alone_ready(struct range range, int call)
{
    return ready((struct question){.range = range, .call = call});
}

int alone_ready_for(struct range range, int advice)
{
    return ready((struct question){range, PRIVATE_ADVICE, advice});
}

int alone_protect(struct attachment *att, struct range range, int prot)
{
    int err;

    attachment_lock(att);
    err = private_protect(att, attachment_offset(att, range.start),
                          attachment_offset(att, range.end), prot);
    attachment_unlock(att);
    return err;
}

static int drop(struct attachment *att, struct range range)
{
    int err;

    attachment_lock(att);
    err = private_drop(att, attachment_offset(att, range.start), attachment_offset(att, range.end));
    attachment_unlock(att);
    return err;
}

int alone_advise(struct attachment *att, struct range range, int advice)
{
    const uint64_t length = range.end - range.start;

    switch (advice) {
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
        return drop(att, range);
    case MADV_POPULATE_READ: /* faults like others, which are answered while it waits */
    case MADV_POPULATE_WRITE:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_DONTDUMP:
        return sys_madvise((void *)range.start, length, advice) ? -errno : 0;
    case MADV_COLD:
    case MADV_PAGEOUT: /* best effort, as in the kernel */
        sys_madvise((void *)range.start, length, advice);
        return 0;
    default: /* a flag of the VMA's, without an effect on such memory */
        return 0;
    }
}
