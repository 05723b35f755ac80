/*
 * preload/unmap.c - munmap(2), mprotect(2), mremap(2) and the like of windows.
 *
 *   on a window       whole             part
 *   munmap            detaches          EINVAL, and then nothing at all is unmapped
 *   mprotect, remap_file_pages          EINVAL
 *   mremap            same size: 0; larger EFAULT; smaller or moved EINVAL
 *   mseal             sealed            EINVAL
 *
 * Source: running v3 kernel. With -o window=inner: inner.h, and an mremap of a window that would
 * change anything is EINVAL. With -o window=private: alone.h, and a part may be unmapped and
 * protected. The kernel changes adopted memory; we only keep a record.
 */
#define _GNU_SOURCE
#include "preload/unmap.h"

#include <errno.h>
#include <stdarg.h>

#include "client/attachments.h"
#include "client/detach.h"
#include "client/handover.h"
#include "msharefs.h"
#include "preload/alone.h"
#include "preload/inner.h"
#include "preload/range.h"
#include "preload/sys.h"

static int do_unmap(void *arg)
{
    const struct range *range = arg;

    return sys_munmap((void *)range->start, range->end - range->start) ? -errno : 0;
}

int preload_unmap(struct range range)
{
    return detach_replace(range.start, range.end, do_unmap, &range);
}

MSHARE_API int munmap(void *addr, size_t length)
{
    struct range range;
    struct inner inner;
    int err;

    if (!preload_concerns(addr, length, &range))
        return sys_munmap(addr, length);
    err = inner_part_of(range, &inner);
    if (err)
        return preload_answer(err < 0 ? err : inner_unmap(&inner));
    err = alone_ready(range, PRIVATE_UNMAP);
    if (err)
        return preload_answer(err);
    attachments_lock();
    err = preload_unmap(range);
    attachments_unlock();
    return preload_answer(err);
}

/* A call that the kernel makes where there is no window, and that is refused on windows. */
struct protect_call {
    int prot, pkey;
};

static int protect(struct attachment *att, struct range range, void *arg)
{
    const struct protect_call *call = arg;
    void *start = (void *)range.start;
    const size_t length = range.end - range.start;

    if (att && !att->private)
        return -EINVAL;
    if (att)
        return alone_protect(att, range, call->prot);
    if (call->pkey < 0 ? sys_mprotect(start, length, call->prot)
                       : sys_pkey_mprotect(start, length, call->prot, call->pkey))
        return -errno;
    return 0;
}

/* A key is one process's own: 0 is what all memory has. */
static int protect_inner(const struct inner *inner, struct protect_call call)
{
    return call.pkey > 0 ? -EINVAL : inner_protect(inner, call.prot);
}

static int protect_parts(struct range range, struct protect_call call)
{
    struct inner inner;
    int err = inner_of(range, &inner);

    if (err)
        return preload_answer(err < 0 ? err : protect_inner(&inner, call));
    err = alone_ready(range, call.pkey > 0 ? ALONE_REFUSED : call.prot);
    if (err)
        return preload_answer(err);
    attachments_lock();
    err = preload_parts(range, protect, &call);
    attachments_unlock();
    return preload_answer(err);
}

MSHARE_API int mprotect(void *addr, size_t length, int prot)
{
    struct range range;

    if (!preload_concerns(addr, length, &range))
        return sys_mprotect(addr, length, prot);
    return protect_parts(range, (struct protect_call){prot, -1});
}

MSHARE_API int pkey_mprotect(void *addr, size_t length, int prot, int pkey)
{
    struct range range;

    if (!preload_concerns(addr, length, &range))
        return sys_pkey_mprotect(addr, length, prot, pkey);
    return protect_parts(range, (struct protect_call){prot, pkey});
}

MSHARE_API int remap_file_pages(void *addr, size_t size, int prot, size_t page, int flags)
{
    struct range range;

    if (preload_concerns(addr, size, &range)) {
        attachments_lock();
        struct attachment *att = attachment_over(range.start, range.end);
        attachments_unlock();
        if (att)
            return preload_answer(-EINVAL);
    }
    return sys_remap_file_pages(addr, size, prot, page, flags);
}

/* A window is sealed against the program, not against us: we have to change a page to
 * make it fault natively. */
static int seal(struct attachment *att, struct range range, void *unused)
{
    (void)unused;
    if (att)
        att->sealed = true;
    else if (sys_mseal((void *)range.start, range.end - range.start, 0))
        return -errno;
    return 0;
}

MSHARE_API int mseal(void *addr, size_t length, unsigned long flags)
{
    struct range range;
    struct inner inner;
    int err;

    if (flags || !preload_concerns(addr, length, &range))
        return sys_mseal(addr, length, flags);
    err = inner_of(range, &inner);
    if (err)
        return preload_answer(err < 0 ? err : inner_verb(&inner, MSHAREFS_SEAL, 0));
    attachments_lock();
    err = attachments_split(range.start, range.end) ? -EINVAL : preload_parts(range, seal, NULL);
    attachments_unlock();
    return preload_answer(err);
}

/* The arguments of an mremap(2), in whole pages. */
struct remap {
    uint64_t old, to;
    uint64_t old_size, new_size;
    int flags;
    void *got;
};

static uint64_t page_up(uint64_t size) { return (size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1); }

static int unmap_tail(struct remap *remap)
{
    const struct range tail = {remap->old + remap->new_size, remap->old + remap->old_size};
    int err = preload_unmap(tail);

    if (!err)
        remap->old_size = remap->new_size;
    return err;
}

static int remap_window(const struct attachment *att, struct remap *remap)
{
    const int changes = MREMAP_DONTUNMAP | MREMAP_FIXED;

    remap->got = (void *)remap->old;
    if (att->inner)
        return remap->flags & changes || remap->new_size != remap->old_size ||
                       remap->old_size > attachment_end(att) - remap->old
                   ? -EINVAL
                   : 0;
    if (remap->flags & MREMAP_DONTUNMAP)
        return -EINVAL;
    if (att->sealed && (remap->flags & MREMAP_FIXED || remap->new_size != remap->old_size))
        return -EPERM;
    if (remap->new_size > remap->old_size)
        return -EFAULT;
    if (remap->flags & MREMAP_FIXED)
        return remap->old_size > attachment_end(att) - remap->old ? -EFAULT : -EINVAL;
    return remap->new_size < remap->old_size ? unmap_tail(remap) : 0;
}

static int remap_kernel(struct remap *remap)
{
    remap->got = sys_mremap((void *)remap->old, remap->old_size, remap->new_size, remap->flags,
                            (void *)remap->to);
    return remap->got == MAP_FAILED ? -errno : 0;
}

/* Past its end there is no memory, and we have to answer the faults there: SIGBUS. */
static void grow_adopted(struct attachment *att, const struct remap *remap)
{
    const uint64_t end = remap->old + remap->new_size;

    pieces_grow(&att->pieces, remap->old + remap->old_size, end);
    if (end > attachment_end(att))
        att->length = end - (uintptr_t)att->base;
    attachments_cover(att);
}

/* A part that moves away is from then on an ordinary mapping of that memory. */
static int remap_adopted(struct attachment *att, struct remap *remap)
{
    int err;

    attachment_lock(att);
    err = pieces_reserve(&att->pieces);
    if (!err) /* unwatched memory is another mapping, and mremap(2) moves only one */
        err = handover_leave(att);
    if (!err)
        err = remap_kernel(remap);
    if (!err && (uintptr_t)remap->got == remap->old)
        grow_adopted(att, remap);
    else if (!err && !(remap->flags & MREMAP_DONTUNMAP))
        pieces_cut(&att->pieces, remap->old, remap->old + remap->old_size);
    if (!att->pieces.count)
        detach_end(att);
    attachment_unlock(att);
    return err;
}

static int remap_locked(struct remap *remap)
{
    struct attachment *att = preload_window(remap->old);
    const bool fixed = remap->flags & MREMAP_FIXED;
    int err = 0;

    if (att && !is_adopted(att))
        return remap_window(att, remap);
    /* As in the kernel: first the target goes, then the surplus at the end. */
    if (fixed && attachment_over(remap->to, remap->to + remap->new_size))
        err = preload_unmap((struct range){remap->to, remap->to + remap->new_size});
    if (!err && remap->new_size < remap->old_size)
        err = unmap_tail(remap);
    if (err)
        return err;
    att = preload_window(remap->old);
    return att ? remap_adopted(att, remap) : remap_kernel(remap);
}

/* Whether the kernel would refuse before it touches anything. */
static bool malformed(const struct remap *remap)
{
    const int known = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    const bool fixed = remap->flags & MREMAP_FIXED;

    return remap->flags & ~known || !remap->new_size || remap->old % PAGE_SIZE ||
           (remap->flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) && !(remap->flags & MREMAP_MAYMOVE)) ||
           (fixed && (remap->to % PAGE_SIZE || remap->new_size > HOST_END ||
                      remap->to > HOST_END - remap->new_size ||
                      (remap->old + remap->old_size > remap->to &&
                       remap->to + remap->new_size > remap->old)));
}

/* What it takes away of windows may be taken. */
static int remap_ready(const struct remap *remap)
{
    const struct range tail = {remap->old + remap->new_size, remap->old + remap->old_size};
    const struct range target = {remap->to, remap->to + remap->new_size};
    int err = tail.start < tail.end ? alone_ready(tail, PRIVATE_UNMAP) : 0;

    return err || !(remap->flags & MREMAP_FIXED) ? err : alone_ready(target, PRIVATE_UNMAP);
}

MSHARE_API void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
    struct remap remap = {(uintptr_t)old, 0, page_up(old_size), page_up(new_size), flags, NULL};
    struct range range;
    int err;

    if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
        va_list list;

        va_start(list, flags);
        remap.to = va_arg(list, uintptr_t);
        va_end(list);
    }
    if (malformed(&remap) ||
        (!preload_concerns(old, old_size ? old_size : 1, &range) &&
         !(flags & MREMAP_FIXED && preload_concerns((void *)remap.to, new_size, &range))))
        return sys_mremap(old, old_size, new_size, flags, (void *)remap.to);
    err = remap_ready(&remap);
    if (err)
        return preload_answer(err) ? MAP_FAILED : NULL;
    attachments_lock();
    err = remap_locked(&remap);
    attachments_unlock();
    return preload_answer(err) ? MAP_FAILED : remap.got;
}
