/*
 * seen.c - see seen.h.
 *
 *   process 1    pppp....hhhhhhhhpp......     p: 4 KiB, h: a page of 2 MiB
 *   process 2    ..pp....hhhhhhhh....hhhh
 *   the region   pppp....hhhhhhhhpp..hhhh     a PTE table for each 2 MiB with a p
 */
#include "server/seen.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "core/audit.h"
#include "core/pagetable.h"
#include "core/vma.h"

/* Linux holds the process's mmap_lock for one call: so many pages at a time. */
#define CALL_PAGES (1u << 18)
#define RUNS 512u

/* linux/fs.h, since Linux 6.7; the headers may be older. */
#define IS_PRESENT (1u << 3)
#define IS_HUGE (1u << 6)

struct run {
    uint64_t start, end, what;
};

struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, all, any, told;
};

#define SCAN_CALL _IOWR('f', 16, struct scan)

static bool is_set(const uint8_t *bits, uint64_t at) { return bits[at / 8] & 1u << at % 8; }

static void set_bits(uint8_t *bits, uint64_t at, uint64_t end)
{
    for (; at < end; at++)
        bits[at / 8] = (uint8_t)(bits[at / 8] | 1u << at % 8);
}

int seen_pages(int pagemap, uint64_t start, uint64_t end, uint64_t offset, uint8_t *pages,
               uint8_t *small)
{
    struct run runs[RUNS];

    for (uint64_t at = start, next; at < end; at = next) {
        struct scan scan = {
            .size = sizeof scan,
            .start = at,
            .end = end,
            .vec = (uintptr_t)runs,
            .vec_len = RUNS,
            .max_pages = CALL_PAGES,
            .any = IS_PRESENT,
            .told = IS_PRESENT | IS_HUGE,
        };
        const int count = ioctl(pagemap, SCAN_CALL, &scan);

        if (count < 0)
            return -errno;
        for (int i = 0; i < count; i++) {
            const uint64_t low = offset + runs[i].start - start,
                           high = offset + runs[i].end - start;

            set_bits(pages, low / PAGE_SIZE, high / PAGE_SIZE);
            if (!(runs[i].what & IS_HUGE))
                set_bits(small, low / PMD_SIZE, (high - 1) / PMD_SIZE + 1);
        }
        next = scan.walk_end;
        if (next <= at) /* this must end */
            return -EIO;
    }
    return 0;
}

enum kind { NONE, SMALL, HUGE };

struct showing {
    struct mm *mm;
    struct mm_vma vma;
    uint64_t start; /* of the piece */
    const uint8_t *pages, *small;
    uint64_t added;
    bool unlinked; /* PTE tables were, which are still to be freed */
};

static enum kind kind_of(const struct showing *show, uint64_t at)
{
    const uint64_t cell = (at - show->start) / PMD_SIZE;
    const uint8_t none[SPAN_PAGES / 8] = {0};

    if (!show->pages || !memcmp(show->pages + cell * sizeof none, none, sizeof none))
        return NONE;
    return is_set(show->small, cell) ? SMALL : HUGE;
}

static int clear_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)level, (void)addr;
    if (atomic_load_explicit(entry, memory_order_relaxed))
        atomic_store_explicit(entry, 0, memory_order_relaxed);
    return 0;
}

static int unlink_table(struct walk *walk, _Atomic uint64_t *entry, uint64_t frame, unsigned level,
                        uint64_t addr)
{
    struct showing *show = walk->arg;

    (void)frame, (void)addr;
    if (!level) {
        atomic_store(entry, 0);
        show->unlinked = true;
    }
    return 0;
}

/* No entries there any more, nor PTE tables. */
static int clear(struct showing *show, uint64_t start, uint64_t end)
{
    struct walk walk = {.mm = show->mm, .leaf = clear_leaf, .table = unlink_table, .arg = show};

    return walk_range(&walk, HOST_BASE + start, HOST_BASE + end);
}

static int add_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct showing *show = walk->arg;
    uint64_t none = 0;
    uint64_t leaf = (DATA_BASE + addr - HOST_BASE) | ENTRY_USER | ENTRY_PRESENT | ENTRY_ACCESSED;

    if (show->vma.flags & VMA_WRITE)
        leaf |= ENTRY_RW;
    if (!(show->vma.flags & VMA_EXEC))
        leaf |= ENTRY_NX;
    if (level)
        leaf |= ENTRY_HUGE;
    show->added += atomic_compare_exchange_strong(entry, &none, leaf);
    return 0;
}

static int add(struct showing *show, uint64_t start, uint64_t end, bool huge)
{
    struct walk walk = {.mm = show->mm,
                        .leaf = add_leaf,
                        .alloc = true,
                        .slot = MM_SLOTS,
                        .huge = huge,
                        .arg = show};

    return walk_range(&walk, HOST_BASE + start, HOST_BASE + end);
}

/* Ends the walk at the first entry. */
static int is_huge_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)addr;
    return level && atomic_load_explicit(entry, memory_order_relaxed) ? HUGE : SMALL;
}

static bool has_huge(const struct showing *show, uint64_t at)
{
    struct walk walk = {.mm = show->mm, .leaf = is_huge_leaf};

    return walk_range(&walk, HOST_BASE + at, HOST_BASE + at + PAGE_SIZE) == HUGE;
}

static int show_small(struct showing *show, uint64_t start, uint64_t end)
{
    struct walk away = {.mm = show->mm, .leaf = clear_leaf};
    int err = has_huge(show, start) ? clear(show, start, end) : 0;

    for (uint64_t at = start, stop; at < end && !err; at = stop) {
        const uint64_t page = (at - show->start) / PAGE_SIZE;
        const bool set = is_set(show->pages, page);

        for (stop = at + PAGE_SIZE; stop < end; stop += PAGE_SIZE)
            if (is_set(show->pages, (stop - show->start) / PAGE_SIZE) != set)
                break;
        err = set ? add(show, at, stop, false)
                  : walk_range(&away, HOST_BASE + at, HOST_BASE + stop);
    }
    return err;
}

static int show_cell(struct showing *show, uint64_t start, uint64_t end)
{
    switch (kind_of(show, start)) {
    case NONE:
        return clear(show, start, end);
    case SMALL:
        return show_small(show, start, end);
    case HUGE:
        if (end - start < PMD_SIZE) /* the file has become shorter since */
            return clear(show, start, end);
        if (has_huge(show, start))
            return 0;
        break;
    }
    const int err = clear(show, start, end);
    return err ? err : add(show, start, end, true);
}

static int show_vma(struct showing *show, uint64_t start, uint64_t end)
{
    int err = 0;

    for (uint64_t at = start, next; at < end && !err; at = next) {
        next = (at & ~(PMD_SIZE - 1)) + PMD_SIZE;
        while (next < end && kind_of(show, at) == NONE && kind_of(show, next) == NONE)
            next += PMD_SIZE;
        next = next < end ? next : end;
        err = show_cell(show, at, next);
    }
    return err;
}

int seen_show(struct mm *mm, uint64_t start, uint64_t end, const uint8_t *pages,
              const uint8_t *small)
{
    struct showing show = {.mm = mm, .start = start, .pages = pages, .small = small};
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);
    int err = set ? 0 : -EUCLEAN;

    for (uint64_t i = 0; i < used && !err; i++) {
        show.vma = set[i];
        const uint64_t low = show.vma.start > start ? show.vma.start : start;
        const uint64_t high = show.vma.end < end ? show.vma.end : end;

        if (!show.vma.object && low < high)
            err = show_vma(&show, low, high);
    }
    atomic_fetch_add(&mm->header->retired.faults, show.added);
    if (!err && show.unlinked)
        err = mm_sweep(mm);
    return err;
}
