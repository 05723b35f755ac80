/*
 * hostmm.c - change a host mm: publish, wait, take away.
 *
 *   UNMAP      AAAA    publish ->    AaaA    zap ->   AaaA   publish ->   A..A
 *   replace    AAAA    publish ->    AbbA    zap ->   AbbA   publish ->   ABBA
 *
 *   protect    AAAA    publish ->    AaaA    rights are taken from the clients,
 *                                            then from the entries
 *                                            publish ->   ABBA
 *
 * A small letter is VMA_BUSY: a fault there waits. So nobody takes a signal for
 * memory that is only being exchanged, or for a change that is taken back because
 * a client does not leave its fault or does not let go of an object.
 */
#define _GNU_SOURCE
#include "server/hostmm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/frames.h"
#include "core/pagetable.h"
#include "core/slots.h"
#include "core/vma.h"

/* Zapping frees a table if no VMA can need it, which is so if its span lies between
 * the VMAs next to the hole: free_pgtables() does that with floor and ceiling. */
struct zap {
    uint64_t floor, ceiling; /* host addresses */
    bool keep;               /* free none: EAGAIN instead */
};

static int zap_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)level, (void)addr;
    atomic_store_explicit(entry, 0, memory_order_relaxed);
    return 0;
}

static int zap_table(struct walk *walk, _Atomic uint64_t *entry, uint64_t frame, unsigned level,
                     uint64_t addr)
{
    const struct zap *zap = walk->arg;

    if (addr < zap->floor || addr + entry_span(level + 1) > zap->ceiling)
        return 0;
    if (zap->keep)
        return -EAGAIN;
    atomic_store(entry, 0);
    return frame_free(walk->mm, frame);
}

static int zap_bad(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)level, (void)addr;
    atomic_store_explicit(entry, 0, memory_order_relaxed);
    return 0;
}

static int zap(struct mm *mm, uint64_t start, uint64_t end, bool keep)
{
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);
    struct zap bounds = {.floor = HOST_BASE, .ceiling = UINT64_MAX, .keep = keep};
    struct walk walk = {
        .mm = mm, .leaf = zap_leaf, .table = zap_table, .bad = zap_bad, .arg = &bounds};

    if (!set)
        return -EUCLEAN;
    for (uint64_t i = 0; i < used; i++) {
        if (set[i].flags & VMA_BUSY)
            continue;
        if (set[i].start < start && HOST_BASE + set[i].end > bounds.floor)
            bounds.floor = HOST_BASE + set[i].end;
        if (set[i].start >= end && HOST_BASE + set[i].start < bounds.ceiling)
            bounds.ceiling = HOST_BASE + set[i].start;
    }
    start += HOST_BASE;
    end = end > mm->host_end - HOST_BASE ? mm->host_end : end + HOST_BASE;
    return start < end ? walk_range(&walk, start, end) : 0;
}

/* Sets the rights of an entry, as mprotect(2) does; accessed and dirty stay. */
static int set_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    uint64_t prot = *(const uint64_t *)walk->arg;
    uint64_t rights = prot ? ENTRY_PRESENT : ENTRY_PROTNONE;
    uint64_t old = atomic_load_explicit(entry, memory_order_relaxed);

    (void)level, (void)addr;
    if (prot & VMA_WRITE)
        rights |= ENTRY_RW;
    if (!(prot & VMA_EXEC))
        rights |= ENTRY_NX;
    const uint64_t changed = ENTRY_PRESENT | ENTRY_PROTNONE | ENTRY_RW | ENTRY_NX;
    while (old && !atomic_compare_exchange_weak(entry, &old, (old & ~changed) | rights))
        ;
    return 0;
}

static int set_rights(struct mm *mm, uint64_t start, uint64_t end, uint64_t prot)
{
    struct walk walk = {.mm = mm, .leaf = set_leaf, .bad = zap_bad, .arg = &prot};

    start += HOST_BASE;
    end = end > mm->host_end - HOST_BASE ? mm->host_end : end + HOST_BASE;
    return start < end ? walk_range(&walk, start, end) : 0;
}

/* The next snapshot, being written into the area that is not current. Faults on the
 * snapshot that was there must be over. */
struct next {
    const struct mm_vma *set; /* the current one */
    uint64_t used;
    struct mm_vma *area;
    uint64_t epoch;
};

static int begin(struct mm *mm, struct next *next)
{
    uint64_t now = atomic_load(&mm->header->epoch);

    next->set = vma_snapshot(mm, now, &next->used);
    next->epoch = now + 1;
    next->area = mm->vmas[next->epoch & 1];
    return next->set ? 0 : -EUCLEAN;
}

static int begin_after_grace(struct mm *mm, struct next *next)
{
    unsigned straggler;

    return slot_grace(mm, &straggler) ? -EBUSY : begin(mm, next);
}

static void publish(struct mm *mm, const struct next *next, uint64_t used)
{
    mm->header->vmas_used[next->epoch & 1] = used;
    atomic_store_explicit(&mm->header->epoch, next->epoch, memory_order_seq_cst);
}

/* 2 MiB pages are not cut: like mmap(2) over a part, munmap(2) and mprotect(2), EINVAL. */
static int check_huge(const struct next *next, uint64_t start, uint64_t end)
{
    for (uint64_t i = 0; i < next->used; i++) {
        const struct mm_vma *vma = &next->set[i];

        if (vma->flags & VMA_HUGE &&
            ((start % PMD_SIZE && vma->start < start && start < vma->end) ||
             (end % PMD_SIZE && vma->start < end && end < vma->end)))
            return -EINVAL;
    }
    return 0;
}

static int begin_change(struct mm *mm, struct next *next, uint64_t start, uint64_t end)
{
    int err = begin_after_grace(mm, next);

    return err ? err : check_huge(next, start, end);
}

/* Publishes `count` VMAs; a negative one is the error of making them. */
static int change(struct mm *mm, const struct next *next, int64_t count, struct mm_intent intent)
{
    if (count < 0)
        return (int)count;
    intent.epoch = next->epoch;
    mm->header->intent = intent;
    atomic_thread_fence(memory_order_release);
    publish(mm, next, (uint64_t)count);
    return 0;
}

int hostmm_map(struct mm *mm, struct mm_vma vma)
{
    struct next next;
    int err = begin_change(mm, &next, vma.start, vma.end);

    if (!err && vma.flags & VMA_HUGE && (vma.start | vma.end | vma.offset) % PMD_SIZE)
        err = -EINVAL;
    vma.flags |= VMA_BUSY;
    vma.serial = ++mm->header->serial;
    if (err)
        return err;
    return change(mm, &next,
                  vma_replace(next.set, next.used, vma.start, vma.end, &vma, next.area, MM_VMAS),
                  (struct mm_intent){.op = INTENT_MAP, .start = vma.start, .end = vma.end});
}

int hostmm_unmap(struct mm *mm, uint64_t start, uint64_t end)
{
    struct next next;
    int err = begin_change(mm, &next, start, end);

    if (err)
        return err;
    /* The VMAs that are left at the end count against the limit, not those shown meanwhile. */
    int64_t count = vma_replace(next.set, next.used, start, end, NULL, next.area, MM_VMAS);
    if (count >= 0)
        count = vma_mark_busy(next.set, next.used, start, end, next.area, MM_VMAS_AREA);
    return change(mm, &next, count,
                  (struct mm_intent){.op = INTENT_UNMAP, .start = start, .end = end});
}

int hostmm_protect(struct mm *mm, uint64_t start, uint64_t end, uint32_t prot)
{
    struct next next;
    int err = begin_change(mm, &next, start, end);

    if (err)
        return err;
    int64_t count = vma_protect(next.set, next.used, start, end, prot, next.area, MM_VMAS);
    if (count >= 0)
        count = vma_protect(next.set, next.used, start, end, prot | VMA_BUSY, next.area,
                            MM_VMAS_AREA);
    return change(mm, &next, count, (struct mm_intent){INTENT_PROTECT, start, end, .prot = prot});
}

int hostmm_flag(struct mm *mm, uint64_t start, uint64_t end, uint32_t clear, uint32_t set_flags)
{
    struct next next;
    int err = begin_change(mm, &next, start, end);

    if (err)
        return err;
    const int64_t count = vma_flag(next.set, next.used, start, end, clear, set_flags, next.area,
                                   MM_VMAS);
    if (count < 0)
        return (int)count;
    publish(mm, &next, (uint64_t)count); /* the intent is INTENT_NONE: nothing is to be finished */
    return 0;
}

/* Publishes a change in which all VMAs stay, with `clear` and `set_flags` as for hostmm_flag(). */
static int publish_busy(struct mm *mm, uint64_t start, uint64_t end, uint32_t clear,
                        uint32_t set_flags, enum mm_intent_op op)
{
    struct next next;
    int err = begin_change(mm, &next, start, end);

    if (err)
        return err;
    int64_t count = vma_flag(next.set, next.used, start, end, clear, set_flags, next.area, MM_VMAS);
    if (count >= 0)
        count = vma_flag(next.set, next.used, start, end, clear, set_flags | VMA_BUSY, next.area,
                         MM_VMAS_AREA);
    return change(mm, &next, count, (struct mm_intent){.op = op, .start = start, .end = end});
}

int hostmm_drop(struct mm *mm, uint64_t start, uint64_t end, uint32_t clear, uint32_t set_flags)
{
    return publish_busy(mm, start, end, clear, set_flags, INTENT_DROP);
}

int hostmm_remove(struct mm *mm, uint64_t start, uint64_t end)
{
    return publish_busy(mm, start, end, 0, 0, INTENT_MAP);
}

/* The second publish: busy VMAs are open for business again, or gone. It is needed
 * even if nothing was busy: an epoch must not have two intents, or a server that
 * dies while it writes the second leaves a mixture of both. */
static int end_busy(struct mm *mm, enum mm_intent_op op)
{
    struct next next;
    int err = begin(mm, &next);

    if (err)
        return err;
    publish(mm, &next, vma_end_busy(next.set, next.used, op == INTENT_UNMAP, next.area));
    return 0;
}

void hostmm_reach(const struct mm *mm, int mem_fd)
{
    /* Takes the inode's lock, as fallocate(2) does. */
    lseek(mem_fd, 0, SEEK_DATA);
    lseek(mm->fd, 0, SEEK_DATA);
}

static int finish_zap(struct mm *mm, const struct mm_intent *intent, int mem_fd)
{
    int err = zap(mm, intent->start, intent->end, false);

    if (!err && fallocate(mem_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)intent->start,
                          (off_t)(intent->end - intent->start)))
        err = -errno;
    return err;
}

/* Likewise where there is neither a page nor a table to be freed; else EAGAIN. */
static int finish_empty(struct mm *mm, const struct mm_intent *intent, int mem_fd)
{
    if (mm_pages(mem_fd, intent->start, intent->end))
        return -EAGAIN;
    return zap(mm, intent->start, intent->end, true);
}

bool hostmm_pending(const struct mm *mm)
{
    const struct mm_intent *intent = &mm->header->intent;

    return intent->op > INTENT_NONE && intent->op <= INTENT_DROPPED &&
           intent->epoch == atomic_load(&mm->header->epoch);
}

static int finish(struct mm *mm, int mem_fd, bool at_once)
{
    struct mm_intent *intent = &mm->header->intent;
    int err;

    if (!hostmm_pending(mm))
        return 0;
    if (intent->start >= intent->end || intent->end > mm->size ||
        (intent->start | intent->end) % PAGE_SIZE)
        return -EUCLEAN;
    /* The old snapshot's area is overwritten from here on. */
    if (intent->op == INTENT_PROTECT || intent->op == INTENT_DROP) {
        intent->op = intent->op == INTENT_DROP ? INTENT_DROPPED : INTENT_RIGHTS;
        atomic_thread_fence(memory_order_release);
    }
    if (intent->op == INTENT_MAP || intent->op == INTENT_UNMAP) {
        err = at_once ? finish_empty(mm, intent, mem_fd) : finish_zap(mm, intent, mem_fd);
    } else if (intent->op == INTENT_DROPPED) {
        err = zap(mm, intent->start, intent->end, at_once);
    } else {
        err = set_rights(mm, intent->start, intent->end, intent->prot & VMA_PROT);
    }
    if (!err)
        err = end_busy(mm, intent->op);
    if (!err)
        intent->op = INTENT_NONE;
    return err;
}

int hostmm_finish(struct mm *mm, int mem_fd) { return finish(mm, mem_fd, false); }

int hostmm_finish_at_once(struct mm *mm, int mem_fd) { return finish(mm, mem_fd, true); }

int hostmm_recover(struct mm *mm, int mem_fd)
{
    if (!hostmm_pending(mm) ||
        (mm->header->intent.op != INTENT_PROTECT && mm->header->intent.op != INTENT_DROP))
        return hostmm_finish(mm, mem_fd);
    hostmm_abort(mm);
    return 0;
}

void hostmm_abort(struct mm *mm)
{
    /* The other area still holds the old set: one more epoch shows it. Its publish is
     * the commit. If the intent were cleared earlier, a successor would find a change
     * that has begun and that nobody finishes. */
    atomic_fetch_add(&mm->header->epoch, 1);
    mm->header->intent.op = INTENT_NONE;
}

static bool any(struct mm *mm, uint64_t start, uint64_t end, bool (*is)(const struct mm_vma *))
{
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);

    for (uint64_t i = 0; set && i < used; i++)
        if (set[i].start < end && set[i].end > start && is(&set[i]))
            return true;
    return !set; /* a broken set: perhaps; the caller will find out */
}

static bool is_any(const struct mm_vma *vma) { return vma; }

static bool is_object(const struct mm_vma *vma) { return vma->object; }

static bool is_executable(const struct mm_vma *vma) { return vma->flags & VMA_EXEC; }

bool hostmm_mapped(struct mm *mm, uint64_t start, uint64_t end)
{
    return any(mm, start, end, is_any);
}

uint64_t hostmm_mapped_bytes(struct mm *mm, uint64_t start, uint64_t end)
{
    uint64_t used, bytes = 0;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);

    for (uint64_t i = 0; set && i < used; i++)
        if (set[i].start < end && set[i].end > start)
            bytes += (set[i].end < end ? set[i].end : end) -
                     (set[i].start > start ? set[i].start : start);
    return bytes;
}

/* What is against a verb on this mapping. */
static int check_vma(const struct mm_vma *vma, uint32_t none_of, uint32_t needed)
{
    if (vma->flags & none_of)
        return vma->flags & none_of & VMA_SEALED ? -EPERM : -EINVAL;
    return (vma->flags & needed) == needed ? 0 : -EACCES;
}

int hostmm_check(struct mm *mm, uint64_t start, uint64_t end, uint32_t none_of, uint32_t needed,
                 bool holes)
{
    uint64_t used, covered = start;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);

    for (uint64_t i = 0; set && i < used && covered < end; i++) {
        if (set[i].end <= start || set[i].start >= end)
            continue;
        if (!holes && set[i].start > covered)
            return -ENOMEM;
        const int err = check_vma(&set[i], none_of, needed);
        if (err)
            return err;
        covered = set[i].end;
    }
    if (!set)
        return -EUCLEAN;
    return holes || covered >= end ? 0 : -ENOMEM;
}

uint32_t hostmm_flags(struct mm *mm, uint64_t start, uint64_t end)
{
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);
    uint32_t flags = 0;

    for (uint64_t i = 0; set && i < used; i++)
        if (set[i].start < end && set[i].end > start)
            flags |= set[i].flags;
    return flags;
}

bool hostmm_has_objects(struct mm *mm, uint64_t start, uint64_t end)
{
    return any(mm, start, end, is_object);
}

bool hostmm_has_exec(struct mm *mm, uint64_t start, uint64_t end)
{
    return any(mm, start, end, is_executable);
}
