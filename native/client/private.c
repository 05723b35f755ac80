/* private.c - a window that the program changes for itself; see private.h. */
#define _GNU_SOURCE
#include "client/private.h"

#include <errno.h>
#include <sys/mman.h>

#include "client/reader.h"
#include "client/view.h"
#include "core/slots.h"
#include "core/vma.h"

static bool gives(uint32_t flags, int prot)
{
    const uint32_t rights = flags & VMA_PROT ? (flags & VMA_PROT) | VMA_READ : 0;

    return !((uint32_t)prot & VMA_PROT & ~rights);
}

static int look_at(const struct attachment *att, const struct mm_vma *vma, int call)
{
    if (vma->flags & VMA_BUSY)
        return -EAGAIN;
    if (call >= 0 && ((call & PROT_WRITE && !att->writable) ||
                      ((vma->object || att->reader) && !gives(vma->flags, call))))
        return -EACCES;
    return call != PRIVATE_ADVICE && vma->flags & VMA_SEALED ? -EPERM : 0;
}

static bool splits_page(const struct mm_vma *vma, uint64_t start, uint64_t end)
{
    return vma->flags & VMA_HUGE &&
           ((start > vma->start && start % PMD_SIZE) || (end < vma->end && end % PMD_SIZE));
}

/* The mapping at `at`, or with PRIVATE_UNMAP the next one before `end`. 1: there is none. */
static int next_vma(const struct attachment *att, uint64_t at, uint64_t end, int call,
                    struct mm_vma *vma)
{
    int err;

    *vma = (struct mm_vma){0};
    err = vma_find(&att->mm, at, vma);
    if (err != -ENOENT)
        return err;
    if (call != PRIVATE_UNMAP)
        return -ENOMEM;
    return vma->start < at || vma->start >= end;
}

int private_look(struct attachment *att, uint64_t start, uint64_t end, int call)
{
    struct mm_vma vma;
    int err = 0, refused = 0;

    attachment_lock(att);
    slot_enter(&att->mm, att->slot);
    for (uint64_t at = start; !err && at < end; at = vma.end) {
        err = next_vma(att, at, end, call, &vma);
        if (!err && splits_page(&vma, start, end))
            err = -EINVAL;
        if (!err && !refused) /* a hole is said first, wherever it is: nothing is to be changed */
            refused = look_at(att, &vma, call);
    }
    slot_leave(&att->mm, att->slot);
    if (err <= 0 && !refused && att->sealed && call >= 0)
        refused = -EPERM;
    attachment_unlock(att);
    return err < 0 ? err : refused;
}

bool private_lacks(struct attachment *att, uint64_t start, uint64_t end, int needed)
{
    bool lacks = false;
    int what;

    attachment_lock(att);
    slot_enter(&att->mm, att->slot);
    for (uint64_t at = start, stop; !lacks && at < end; at = stop) {
        struct mm_vma vma;

        stop = unshared_run(&att->unshared, at, end, &what);
        if (vma_find(&att->mm, at, &vma))
            break;
        if (vma.end < stop)
            stop = vma.end;
        lacks = what >= 0 ? (what & needed) != needed
                          : !gives(vma.flags, needed) || (att->prot & needed) != needed;
    }
    slot_leave(&att->mm, att->slot);
    attachment_unlock(att);
    return lacks;
}

void private_publish(const struct attachment *att)
{
    if (att->unshared.count)
        atomic_store(&att->mm.slots[att->slot].unshared, (uint32_t)unshared_tables(&att->unshared));
}

static void take(struct attachment *att, struct unshared *next)
{
    unshared_free(&att->unshared);
    att->unshared = *next;
    private_publish(att);
    if (att->reader && att->served == BY_THREAD) /* a shadow says it with the next fault */
        reader_report(att);
}

int private_protect(struct attachment *att, uint64_t start, uint64_t end, int prot)
{
    struct unshared next;
    int err = unshared_change(&att->unshared, start, end, prot & (int)VMA_PROT, &next);

    if (err)
        return err;
    if (mprotect(attachment_at(att, start), end - start, prot)) {
        err = -errno;
        unshared_free(&next);
        return err;
    }
    take(att, &next);
    return 0;
}

int private_drop(struct attachment *att, uint64_t start, uint64_t end)
{
    struct unshared next;
    int err = unshared_change(&att->unshared, start, end, UNSHARED_KEEP, &next);

    if (err)
        return err;
    err = view_drop((uintptr_t)attachment_at(att, start), (uintptr_t)attachment_at(att, end));
    if (err)
        unshared_free(&next);
    else
        take(att, &next);
    return err;
}

int private_cut(const struct attachment *att, uint64_t start, uint64_t end, struct unshared *next)
{
    const uint64_t first = (uintptr_t)att->base, last = attachment_end(att);

    return unshared_change(&att->unshared, attachment_offset(att, start > first ? start : first),
                           attachment_offset(att, end < last ? end : last), UNSHARED_GONE, next);
}

bool private_take(struct attachment *att, struct unshared *next)
{
    take(att, next);
    return private_gone(att, (uintptr_t)att->base, attachment_end(att));
}

bool private_gone(const struct attachment *att, uint64_t start, uint64_t end)
{
    const uint64_t first = attachment_offset(att, start), last = attachment_offset(att, end);
    int what;

    return att->unshared.count && unshared_run(&att->unshared, first, last, &what) == last &&
           what == UNSHARED_GONE;
}

bool private_permits(const struct attachment *att, const struct fault *fault)
{
    const int what = unshared_at(&att->unshared, fault->offset);

    if (what < 0 || fault->vma.object)
        return false;
    return fault->access == ACCESS_WRITE ? what & PROT_WRITE : what;
}
