/*
 * entries.c - entries of memory that Linux fills by itself; see entries.h.
 *
 * Which pages the object has is which entries there are, so an entry is made when somebody
 * looks. Who touched the page first, and whether by a load or a store, is not known then.
 */
#define _GNU_SOURCE
#include "core/entries.h"

#include <errno.h>
#include <unistd.h>

#include "core/linger.h"
#include "core/pagetable.h"
#include "core/vma.h"

void entries_watch(struct mm *mm, uint64_t ns)
{
    const uint64_t until = clock_ns(CLOCK_MONOTONIC) + ns;

    if (atomic_load(&mm->header->watch_until) < until) /* somebody else may look for longer */
        atomic_store(&mm->header->watch_until, until);
}

bool entries_watched(const struct mm *mm)
{
    const uint64_t until = atomic_load(&mm->header->watch_until);

    return until && clock_ns(CLOCK_MONOTONIC) < until;
}

bool entries_by_linux(const struct mm *mm)
{
    return atomic_load(&mm->header->linux_fills) && !entries_watched(mm);
}

struct catch_up {
    unsigned slot;
    const struct mm_vma *vma;
    int64_t added;
};

static int add_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct catch_up *work = walk->arg;
    uint64_t none = 0, leaf = (DATA_BASE + addr - HOST_BASE) | ENTRY_USER;

    if (level)
        return -EUCLEAN;
    if (atomic_load_explicit(entry, memory_order_relaxed)) /* of most, by the second look */
        return 0;
    leaf |= work->vma->flags & VMA_PROT ? ENTRY_PRESENT | ENTRY_ACCESSED : ENTRY_PROTNONE;
    if (work->vma->flags & VMA_WRITE)
        leaf |= ENTRY_RW;
    if (!(work->vma->flags & VMA_EXEC))
        leaf |= ENTRY_NX;
    work->added += atomic_compare_exchange_strong(entry, &none, leaf);
    return 0;
}

static int clear_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)level, (void)addr;
    if (atomic_load_explicit(entry, memory_order_relaxed))
        atomic_store_explicit(entry, 0, memory_order_relaxed);
    return 0;
}

static int clear(struct mm *mm, uint64_t start, uint64_t end)
{
    struct walk walk = {.mm = mm, .leaf = clear_leaf};

    return start < end ? walk_range(&walk, HOST_BASE + start, HOST_BASE + end) : 0;
}

/* The next pages that the object has from `at` on; [end, end) if there are none before `end`. */
static int next_pages(int mem_fd, uint64_t at, uint64_t end, uint64_t *start, uint64_t *stop)
{
    const off_t data = lseek(mem_fd, (off_t)at, SEEK_DATA);
    off_t hole;

    *start = *stop = end;
    if (data < 0)
        return errno == ENXIO ? 0 : -errno;
    if ((uint64_t)data >= end)
        return 0;
    hole = lseek(mem_fd, data, SEEK_HOLE);
    if (hole < 0) /* it has gone since */
        return errno == ENXIO ? 0 : -errno;
    if (hole <= data) /* a file system of its own kind; this must end */
        return -EUCLEAN;
    *start = (uint64_t)data & ~(PAGE_SIZE - 1);
    *stop = ((uint64_t)hole + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    if (*stop > end)
        *stop = end;
    return 0;
}

static int catch_up_vma(struct mm *mm, int mem_fd, struct mm_vma vma, enum entries_how how,
                        struct catch_up *work)
{
    struct walk walk = {.mm = mm, .leaf = add_leaf, .alloc = true, .slot = work->slot, .arg = work};
    uint64_t start, stop;
    int err = 0;

    work->vma = &vma;
    for (uint64_t at = vma.start; at < vma.end && !err; at = stop) {
        err = next_pages(mem_fd, at, vma.end, &start, &stop);
        if (!err && how == ENTRIES_EXACT)
            err = clear(mm, at, start);
        if (!err && start < stop)
            err = walk_range(&walk, HOST_BASE + start, HOST_BASE + stop);
    }
    return err;
}

int64_t entries_catch_up(struct mm *mm, unsigned slot, int mem_fd, uint64_t start, uint64_t end,
                         enum entries_how how)
{
    struct mm_counters *counters = slot < MM_SLOTS ? &mm->slots[slot].counters
                                                   : &mm->header->retired;
    const uint64_t limit = mm->host_end - HOST_BASE;
    struct catch_up work = {.slot = slot};
    uint64_t used;
    const uint64_t epoch = atomic_load(&mm->header->epoch) - (how == ENTRIES_BEFORE);
    const struct mm_vma *set = vma_snapshot(mm, epoch, &used);
    int err = set ? 0 : -EUCLEAN;

    if (how == ENTRIES_BEFORE && mm->header->intent.epoch != epoch + 1)
        return 0; /* there is no change */
    if (how == ENTRIES_NOW && entries_watched(mm))
        return 0;
    end = end < limit ? end : limit;
    for (uint64_t i = 0; i < used && !err; i++) {
        struct mm_vma vma = set[i];

        if (vma.object || (vma.flags & VMA_BUSY && how == ENTRIES_NOW) || vma.start >= end ||
            vma.end <= start)
            continue;
        vma.start = vma.start > start ? vma.start : start;
        vma.end = vma.end < end ? vma.end : end;
        err = catch_up_vma(mm, mem_fd, vma, how, &work);
    }
    atomic_fetch_add(&counters->faults, (uint64_t)work.added);
    return err ? err : work.added;
}

bool entries_span(int mem_fd, uint64_t *start, uint64_t end, uint64_t *stop)
{
    uint64_t from = *start, to;

    if (next_pages(mem_fd, *start, end, &from, &to) || from >= to)
        return false;
    from &= ~(PMD_SIZE - 1);
    *start = from > *start ? from : *start;
    to = (to + PMD_SIZE - 1) & ~(PMD_SIZE - 1);
    *stop = to < end ? to : end;
    return true;
}
