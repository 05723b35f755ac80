/* pagetable.c - walk the shared tables; see pagetable.h. */
#include "core/pagetable.h"
#include "core/frames.h"

#include <errno.h>

enum { PGD_LEVEL = 3 };

/* Links a new table into `entry`, or finds the one that another process linked
 * first. The frame's word says where it belongs before the entry can point to it,
 * so a death at any instruction leaves a state that slot_reap() can settle. */
static int add_table(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    const uint64_t span_mask = ~(entry_span(level + 1) - 1);
    uint64_t frame, none = 0;
    int err = frame_alloc(walk->mm, walk->slot, level, addr, &frame);

    if (err)
        return err;
    if (!atomic_compare_exchange_strong(entry, &none, frame_entry(frame))) {
        frame_drop(walk->mm, frame);
        return 0;
    }
    atomic_store_explicit(&walk->mm->words[frame],
                          frame_word(FRAME_TABLE, level, 0, addr & span_mask),
                          memory_order_release);
    return 0;
}

/* The entries of a table of level 0. */
static int walk_leaves(struct walk *walk, _Atomic uint64_t *table, uint64_t start, uint64_t end)
{
    for (uint64_t base = start & -PAGE_SIZE; base < end; base += PAGE_SIZE) {
        _Atomic uint64_t *entry = &table[base >> PAGE_SHIFT & 511];

        if (walk->filled && !atomic_load_explicit(entry, memory_order_acquire))
            continue;
        const int err = walk->leaf(walk, entry, 0, base);
        if (err)
            return err;
    }
    return 0;
}

static int walk_table(struct walk *walk, _Atomic uint64_t *table, unsigned level, uint64_t start,
                      uint64_t end)
{
    const uint64_t span = entry_span(level);
    int err;

    if (level == 0)
        return walk->leaf ? walk_leaves(walk, table, start, end) : 0;
    for (uint64_t addr = start, next; addr < end; addr = next) {
        _Atomic uint64_t *entry = &table[addr >> entry_shift(level) & 511];
        uint64_t base = addr & ~(span - 1);

        next = base + span < end ? base + span : end;
        uint64_t value = atomic_load_explicit(entry, memory_order_acquire);

        if (level == 1 && (value & ENTRY_HUGE || (walk->huge && !value))) {
            err = walk->leaf ? walk->leaf(walk, entry, level, base) : 0;
            if (err)
                return err;
            continue;
        }
        if (!value && walk->alloc) {
            err = add_table(walk, entry, level - 1, addr);
            if (err)
                return err;
            value = atomic_load_explicit(entry, memory_order_acquire);
        }
        if (!value)
            continue;
        _Atomic uint64_t *below = frame_table(walk->mm, value, level - 1, base);
        if (!below) {
            err = walk->bad ? walk->bad(walk, entry, level, base) : -EUCLEAN;
            if (err)
                return err;
            continue;
        }
        err = walk_table(walk, below, level - 1, addr, next);
        if (!err && walk->table)
            err = walk->table(walk, entry, entry_frame(value), level - 1, base);
        if (err)
            return err;
    }
    return 0;
}

int walk_range(struct walk *walk, uint64_t start, uint64_t end)
{
    if (start > end || end > walk->mm->host_end)
        return -EINVAL;
    return walk_table(walk, frame_entries(walk->mm, 0), PGD_LEVEL, start, end);
}
