/*
 * fault.c - the fault path on the shared tables: what handle_mm_fault() is in the
 * kernel. Any number of processes run it at once. It is idempotent, so a death in
 * the middle leaves work for the next fault, but never a wrong state:
 *
 *   entry   page     how it came about              the next fault
 *   none    absent   never touched                  fills both
 *   set     absent   died before the page came      adds the page
 *   none    present  died, or a native attachment   fills the entry
 *   set     present  the normal case                makes it reachable ("link")
 */
#define _GNU_SOURCE
#include "core/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "core/pagetable.h"
#include "core/vma.h"

/* The kernel's own fault-around. */
#define BLOCK_BYTES (64ull << 10)
/* A process may have 65,530 mappings: a large object has larger blocks. */
#define BLOCKS_MAX 4096

uint64_t fault_block(const struct mm_vma *vma)
{
    uint64_t bytes = vma->flags & VMA_HUGE ? PMD_SIZE : BLOCK_BYTES;

    while (bytes < (vma->end - vma->start) / BLOCKS_MAX)
        bytes *= 2;
    return bytes;
}

static void see(struct fault *fault, uint64_t offset)
{
    uint64_t page = (offset - fault->start) / PAGE_SIZE;

    fault->present[page / 64] |= 1ull << page % 64;
}

static uint64_t new_leaf(const struct fault *fault, uint64_t offset)
{
    uint64_t base = fault->vma.object ? OBJECTS_BASE : DATA_BASE;
    uint64_t value = (base + offset) | ENTRY_PRESENT | ENTRY_USER;

    if (fault->vma.flags & VMA_HUGE)
        value |= ENTRY_HUGE;
    if (fault->vma.flags & VMA_WRITE)
        value |= ENTRY_RW;
    if (!(fault->vma.flags & VMA_EXEC))
        value |= ENTRY_NX;
    return value;
}

/* The bits that the MMU would set in the entry for this access. */
static uint64_t touched(const struct fault *fault)
{
    return fault->access == ACCESS_WRITE ? ENTRY_ACCESSED | ENTRY_DIRTY : ENTRY_ACCESSED;
}

/* Every process fills an entry for the same VMA, so two sane entries can differ
 * only in the accessed and dirty bits. */
static bool sane_leaf(const struct fault *fault, uint64_t value, uint64_t offset)
{
    return !((value ^ new_leaf(fault, offset)) & ~(ENTRY_ACCESSED | ENTRY_DIRTY));
}

static unsigned leaf_level(const struct fault *fault)
{
    return fault->vma.flags & VMA_HUGE ? 1 : 0;
}

static int touch_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct fault *fault = walk->arg;
    uint64_t offset = addr - HOST_BASE, old = 0;

    if (level != leaf_level(fault))
        return -EUCLEAN;
    if (atomic_compare_exchange_strong(entry, &old, new_leaf(fault, offset) | touched(fault)))
        fault->filled = 1;
    else if (!sane_leaf(fault, old, offset))
        return -EUCLEAN;
    else if ((old & touched(fault)) != touched(fault))
        atomic_fetch_or(entry, touched(fault));
    if (!fault->vma.object)
        see(fault, offset);
    return 0;
}

/* The other pages of an object that are mapped together with the touched one:
 * nobody has touched them yet, and a later touch will not come by here. */
static int fill_beside(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct fault *fault = walk->arg;
    uint64_t offset = addr - HOST_BASE, old = 0;

    if (level != leaf_level(fault))
        return -EUCLEAN;
    if (atomic_compare_exchange_strong(entry, &old, new_leaf(fault, offset)))
        fault->beside++;
    return old && !sane_leaf(fault, old, offset) ? -EUCLEAN : 0;
}

/* Notes which pages have an entry. Right behind a first touch it fills the missing
 * ones, as far as it may; nobody has touched those pages, and their entries say so. */
static int look_around(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct fault *fault = walk->arg;
    uint64_t offset = addr - HOST_BASE;
    uint64_t old = atomic_load_explicit(entry, memory_order_relaxed);

    if (level)
        return -EUCLEAN;
    if (fault->skip >> offset % PMD_SIZE / FAULT_BLOCK & 1)
        return 0;
    if (!old && fault->filled && fault->filled < fault->fill &&
        offset == fault->offset + fault->filled * PAGE_SIZE &&
        atomic_compare_exchange_strong(entry, &old, new_leaf(fault, offset))) {
        fault->filled++;
        old = ENTRY_PRESENT;
    }
    if (old & ENTRY_PRESENT)
        see(fault, offset);
    return 0;
}

static bool permitted(const struct fault *fault)
{
    uint32_t prot = fault->vma.flags & VMA_PROT;

    /* x86 has no write-only and no execute-only pages without protection keys. */
    return fault->access == ACCESS_WRITE ? prot & VMA_WRITE : prot != 0;
}

/* The range of pages to look at, cut to the VMA. */
static void clip(struct fault *fault)
{
    if (fault->start < fault->vma.start)
        fault->start = fault->vma.start;
    if (fault->end > fault->vma.end)
        fault->end = fault->vma.end;
}

static enum fault_verdict broken(struct fault *fault, const char *step, int err)
{
    fault->step = step;
    fault->error = err;
    return FAULT_BROKEN;
}

enum fault_verdict fault_look(const struct mm *mm, struct fault *fault)
{
    int err = vma_find(mm, fault->offset, &fault->vma);

    if (err)
        return err == -ENOENT ? FAULT_MAPERR : broken(fault, "finding the mapping", err);
    if (fault->vma.flags & VMA_BUSY)
        return FAULT_WAIT;
    if (!permitted(fault)) /* as in Linux, where a guard is in the table, and rights in the VMA */
        return FAULT_ACCERR;
    return fault->vma.flags & VMA_GUARD ? FAULT_MAPERR : FAULT_MAP;
}

static int fill_anonymous(struct mm *mm, struct fault *fault)
{
    struct walk around = {.mm = mm, .leaf = look_around, .arg = fault};

    return fault->end - fault->start > PAGE_SIZE
               ? walk_range(&around, HOST_BASE + fault->start, HOST_BASE + fault->end)
               : 0;
}

static int fill_object(struct walk touch, const struct fault *fault)
{
    uint64_t end = fault->end < fault->limit ? fault->end : fault->limit;

    touch.leaf = fill_beside;
    return fault->start < end ? walk_range(&touch, HOST_BASE + fault->start, HOST_BASE + end) : 0;
}

enum fault_verdict fault_fill(struct mm *mm, unsigned slot, struct fault *fault)
{
    const bool object = fault->vma.object;
    uint64_t addr = HOST_BASE + fault->offset;
    struct walk touch = {.mm = mm,
                         .leaf = touch_leaf,
                         .alloc = true,
                         .slot = slot,
                         .huge = fault->vma.flags & VMA_HUGE,
                         .arg = fault};
    int err = 0;

    clip(fault);
    fault->filled = fault->beside = 0;
    fault->protect = !(fault->vma.flags & VMA_WRITE);
    memset(fault->present, 0, sizeof fault->present);
    if (!object || fault->offset < fault->limit)
        err = walk_range(&touch, addr, addr + PAGE_SIZE);
    if (err)
        return broken(fault, "its entry in the page tables", err);
    err = object ? fill_object(touch, fault) : fill_anonymous(mm, fault);
    return err ? broken(fault, "entries beside it", err) : FAULT_MAP;
}

/* EINTR even where all signals are blocked: somebody has stopped the process, and let it go on. */
int fault_make_range(int mem_fd, uint64_t start, uint64_t size)
{
    int err;

    do
        err = fallocate(mem_fd, 0, (off_t)start, (off_t)size) ? errno : 0;
    while (err == EINTR);
    return -err;
}

int fault_make_pages(const struct fault *fault, int mem_fd)
{
    const uint64_t fresh = fault->filled > 1 ? fault->filled : 1;
    const int err = fault_make_range(mem_fd, fault->offset, fresh * PAGE_SIZE);

    /* Memory may be short for pages filled ahead, but not for the page itself. */
    return err && fresh > 1 ? fault_make_range(mem_fd, fault->offset, PAGE_SIZE) : err;
}

enum fault_verdict mm_fault(struct mm *mm, unsigned slot, struct fault *fault)
{
    enum fault_verdict verdict = fault_look(mm, fault);

    return verdict == FAULT_MAP ? fault_fill(mm, slot, fault) : verdict;
}
