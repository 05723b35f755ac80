/* populate.c - see populate.h. */
#include "server/populate.h"

#include <errno.h>

#include "core/pagetable.h"

struct filling {
    uint64_t base; /* of the addresses in the entries */
    uint64_t bits, touched;
    unsigned level;
    uint64_t added;
};

static int fill(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct filling *filling = walk->arg;
    uint64_t old = 0;

    if (level != filling->level)
        return -EUCLEAN;
    const uint64_t leaf = (filling->base + addr - HOST_BASE) | filling->bits | filling->touched;
    if (atomic_compare_exchange_strong(entry, &old, leaf))
        filling->added++;
    else
        atomic_fetch_or(entry, filling->touched);
    return 0;
}

int64_t populate(struct mm *mm, struct mm_vma vma, uint64_t start, uint64_t end, bool write)
{
    const uint64_t limit = mm->host_end - HOST_BASE;
    struct filling filling = {
        .base = vma.object ? OBJECTS_BASE : DATA_BASE,
        .bits = ENTRY_USER | ENTRY_PRESENT,
        .touched = write ? ENTRY_ACCESSED | ENTRY_DIRTY : ENTRY_ACCESSED,
        .level = vma.flags & VMA_HUGE ? 1 : 0,
    };
    struct walk walk = {
        .mm = mm,
        .leaf = fill,
        .alloc = true,
        .slot = MM_SLOTS,
        .huge = vma.flags & VMA_HUGE,
        .arg = &filling,
    };
    int err;

    if (vma.flags & VMA_HUGE)
        filling.bits |= ENTRY_HUGE;
    if (vma.flags & VMA_WRITE)
        filling.bits |= ENTRY_RW;
    if (!(vma.flags & VMA_EXEC))
        filling.bits |= ENTRY_NX;
    end = end < limit ? end : limit;
    err = start < end ? walk_range(&walk, HOST_BASE + start, HOST_BASE + end) : 0;
    atomic_fetch_add(&mm->header->retired.faults, filling.added);
    return err ? err : (int64_t)filling.added;
}
