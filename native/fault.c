/*
 * fault.c - the fault path on the shared tables, as handle_mm_fault() is to the
 * kernel. Any number of processes run it at once; it is idempotent, so a death
 * in the middle leaves work for the next fault, not a wrong state:
 *
 *   entry   page     how it came about              the next fault
 *   none    absent   never touched                  fills both
 *   set     absent   died before the page came      adds the page
 *   none    present  died, or a native attachment   fills the entry
 *   set     present  the normal case                makes it reachable ("link")
 */
#include "fault.h"

#include <errno.h>

#include "pagetable.h"

static int fill_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct fault *fault = walk->arg;
    uint64_t value = (DATA_BASE + (addr - HOST_BASE)) | ENTRY_PRESENT | ENTRY_USER | ENTRY_ACCESSED;
    uint64_t old = 0;

    (void)level;
    if (fault->vma.flags & VMA_WRITE)
        value |= ENTRY_RW;
    if (!(fault->vma.flags & VMA_EXEC))
        value |= ENTRY_NX;
    if (fault->access == ACCESS_WRITE)
        value |= ENTRY_DIRTY;
    if (atomic_compare_exchange_strong(entry, &old, value)) {
        fault->first = true;
        return 0;
    }
    /* Whoever was faster is of the same VMA: accessed and dirty are all in which
     * two sane entries can differ. */
    if ((old ^ value) & ~(ENTRY_ACCESSED | ENTRY_DIRTY))
        return -EUCLEAN;
    if (fault->access == ACCESS_WRITE && !(old & ENTRY_DIRTY))
        atomic_fetch_or(entry, ENTRY_DIRTY | ENTRY_ACCESSED);
    return 0;
}

static int count_present(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct fault *fault = walk->arg;

    (void)level;
    /* A table that is missing shows as a jump of the address. */
    if (addr - HOST_BASE != fault->offset + fault->pages * PAGE_SIZE ||
        !(atomic_load_explicit(entry, memory_order_relaxed) & ENTRY_PRESENT))
        return 1;
    fault->pages++;
    return 0;
}

static bool permitted(const struct fault *fault)
{
    uint32_t prot = fault->vma.flags & VMA_PROT;

    /* x86 has no write-only and no execute-only pages without protection keys. */
    return fault->access == ACCESS_WRITE ? prot & VMA_WRITE : prot != 0;
}

enum fault_verdict mm_fault(struct mm *mm, unsigned slot, struct fault *fault)
{
    uint64_t addr = HOST_BASE + fault->offset;
    struct walk fill = {.mm = mm, .leaf = fill_leaf, .alloc = true, .slot = slot, .arg = fault};
    struct walk around = {.mm = mm, .leaf = count_present, .arg = fault};

    int err = vma_find(mm, fault->offset, &fault->vma);
    if (err)
        return err == -ENOENT ? FAULT_MAPERR : FAULT_BROKEN;
    if (fault->vma.flags & VMA_BUSY)
        return FAULT_WAIT;
    if (!permitted(fault))
        return FAULT_ACCERR;

    fault->first = false;
    fault->protect = !(fault->vma.flags & VMA_WRITE);
    if (walk_range(&fill, addr, addr + PAGE_SIZE))
        return FAULT_BROKEN;

    uint64_t room = (fault->vma.end - fault->offset) / PAGE_SIZE;
    uint64_t pages = fault->ahead < room ? fault->ahead : room;

    fault->pages = 1;
    if (pages > 1 && walk_range(&around, addr + PAGE_SIZE, addr + pages * PAGE_SIZE) < 0)
        return FAULT_BROKEN;
    return FAULT_MAP;
}
