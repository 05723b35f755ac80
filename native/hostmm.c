/*
 * hostmm.c - change a host mm: publish, wait, take away.
 *
 *   UNMAP      AAAA    publish ->    AaaA    zap ->   AaaA   publish ->   A..A
 *   replace    AAAA    publish ->    AbbA    zap ->   AbbA   publish ->   ABBA
 *
 * A small letter is VMA_BUSY: a fault there waits, so that nobody takes a signal
 * for memory that is only being exchanged, or for an UNMAP that is taken back
 * because a client does not leave its fault.
 */
#define _GNU_SOURCE
#include "hostmm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "pagetable.h"

/* Zapping frees a table when no VMA can need it: its span lies between the
 * VMAs next to the hole, as free_pgtables() does with floor and ceiling. */
struct zap {
    uint64_t floor, ceiling; /* host addresses */
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
    atomic_store(entry, 0);
    return frame_free(walk->mm, frame);
}

static int zap_bad(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)level, (void)addr;
    atomic_store_explicit(entry, 0, memory_order_relaxed);
    return 0;
}

static int zap(struct mm *mm, uint64_t start, uint64_t end)
{
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);
    struct zap bounds = {.floor = HOST_BASE, .ceiling = UINT64_MAX};
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

/* Where the next snapshot goes: the area that is not current. Faults on the
 * snapshot before last must be over; every caller has just seen a grace. */
static struct mm_vma *next_area(struct mm *mm, uint64_t *epoch, const struct mm_vma **set,
                                uint64_t *used)
{
    uint64_t now = atomic_load(&mm->header->epoch);

    *set = vma_snapshot(mm, now, used);
    *epoch = now + 1;
    return mm->vmas[(now + 1) & 1];
}

static void publish(struct mm *mm, uint64_t epoch, uint64_t used)
{
    mm->header->vmas_used[epoch & 1] = used;
    atomic_store_explicit(&mm->header->epoch, epoch, memory_order_seq_cst);
}

static int change(struct mm *mm, uint64_t start, uint64_t end, const struct mm_vma *vma)
{
    uint64_t epoch, used;
    const struct mm_vma *set;
    struct mm_vma *area = next_area(mm, &epoch, &set, &used);
    unsigned straggler;

    if (!set)
        return -EUCLEAN;
    if (slot_grace(mm, &straggler))
        return -EBUSY;
    /* What an UNMAP leaves counts against the limit, not what it shows meanwhile. */
    int64_t count = vma_replace(set, used, start, end, vma, area, MM_VMAS);
    if (count >= 0 && !vma)
        count = vma_mark_busy(set, used, start, end, area, MM_VMAS_AREA);
    if (count < 0)
        return (int)count;
    mm->header->intent =
        (struct mm_intent){vma ? INTENT_MAP : INTENT_UNMAP, start, end, epoch};
    atomic_thread_fence(memory_order_release);
    publish(mm, epoch, (uint64_t)count);
    return 0;
}

int hostmm_map(struct mm *mm, struct mm_vma vma)
{
    vma.flags |= VMA_BUSY;
    vma.serial = ++mm->header->serial;
    return change(mm, vma.start, vma.end, &vma);
}

int hostmm_unmap(struct mm *mm, uint64_t start, uint64_t end)
{
    return change(mm, start, end, NULL);
}

/* The second publish: what was busy is open for business, or gone. Also when
 * nothing was busy: an epoch must not have two intents, or a server that dies
 * while it writes the second leaves one that is half the first. */
static int end_busy(struct mm *mm, enum mm_intent_op op)
{
    uint64_t epoch, used, count = 0;
    const struct mm_vma *set;
    struct mm_vma *area = next_area(mm, &epoch, &set, &used);

    if (!set)
        return -EUCLEAN;
    for (uint64_t i = 0; i < used; i++) {
        if (op == INTENT_UNMAP && set[i].flags & VMA_BUSY)
            continue;
        area[count] = set[i];
        area[count++].flags &= ~(uint32_t)VMA_BUSY;
    }
    publish(mm, epoch, count);
    return 0;
}

int hostmm_finish(struct mm *mm, int mem_fd)
{
    struct mm_intent *intent = &mm->header->intent;
    int err;

    if ((intent->op != INTENT_MAP && intent->op != INTENT_UNMAP) ||
        intent->epoch != atomic_load(&mm->header->epoch))
        return 0;
    if (intent->start > intent->end || intent->end > mm->size)
        return -EUCLEAN;
    err = zap(mm, intent->start, intent->end);
    if (!err && fallocate(mem_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          (off_t)intent->start, (off_t)(intent->end - intent->start)))
        err = -errno;
    if (!err)
        err = end_busy(mm, intent->op);
    if (!err)
        intent->op = INTENT_NONE;
    return err;
}

void hostmm_abort(struct mm *mm)
{
    /* The other area still holds the set of before: one more epoch shows it. Its
     * publish is the commit; cleared earlier, the intent would leave a successor
     * with a change that is begun and that nobody finishes. */
    atomic_fetch_add(&mm->header->epoch, 1);
    mm->header->intent.op = INTENT_NONE;
}

bool hostmm_mapped(struct mm *mm, uint64_t start, uint64_t end)
{
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);

    for (uint64_t i = 0; set && i < used; i++)
        if (set[i].start < end && set[i].end > start)
            return true;
    return false;
}
