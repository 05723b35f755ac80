/*
 * frames.c - table frames, taken and given back without a lock.
 *
 * A free frame is a hole in the file: it reads as zero and takes no memory. So a
 * frame in hand needs no clearing, and one that lost the race to be linked goes
 * back unchanged.
 */
#define _GNU_SOURCE
#include "core/frames.h"

#include <errno.h>
#include <fcntl.h>

uint64_t frames_high(const struct mm *mm)
{
    uint64_t high = atomic_load(&mm->header->frames_high);

    return high < mm->frames_max ? high : mm->frames_max;
}

_Atomic uint64_t *frame_entries(const struct mm *mm, uint64_t frame)
{
    return (_Atomic uint64_t *)(mm->frames + frame * PAGE_SIZE);
}

_Atomic uint64_t *frame_table(const struct mm *mm, uint64_t entry, unsigned level, uint64_t addr)
{
    const uint64_t span_mask = ~((PMD_SIZE << 9 * level) - 1);
    uint64_t frame = entry_frame(entry);

    if (!(entry & ENTRY_PRESENT) || (entry & ENTRY_HUGE) || frame >= mm->frames_max)
        return NULL;
    /* A level and span that match make a loop of tables impossible. */
    uint64_t word = atomic_load_explicit(&mm->words[frame], memory_order_acquire);
    if (frame_state(word) == FRAME_FREE || frame_level(word) != level ||
        frame_addr(word) != (addr & span_mask))
        return NULL;
    return frame_entries(mm, frame);
}

int frame_alloc(struct mm *mm, unsigned slot, unsigned level, uint64_t addr, uint64_t *frame)
{
    const uint64_t span_mask = ~((PMD_SIZE << 9 * level) - 1);
    const uint64_t held = frame_word(FRAME_HELD, level, slot, addr & span_mask);
    uint64_t start = atomic_load_explicit(&mm->header->frames_hint, memory_order_relaxed);

    if (start >= mm->frames_max)
        start = 0;
    for (uint64_t i = 0; i < mm->frames_max; i++) {
        uint64_t candidate = start + i < mm->frames_max ? start + i : start + i - mm->frames_max;
        uint64_t none = 0;

        if (atomic_load_explicit(&mm->words[candidate], memory_order_relaxed) != 0)
            continue;
        /* First raise the mark, then claim: so every claimed frame is below the mark. */
        mm_raise(&mm->header->frames_high, candidate + 1);
        if (!atomic_compare_exchange_strong(&mm->words[candidate], &none, held))
            continue;
        atomic_store_explicit(&mm->header->frames_hint, candidate + 1, memory_order_relaxed);
        *frame = candidate;
        return 0;
    }
    return -ENOSPC;
}

static void release(struct mm *mm, uint64_t frame)
{
    atomic_store_explicit(&mm->words[frame], 0, memory_order_release);
    if (frame < atomic_load_explicit(&mm->header->frames_hint, memory_order_relaxed))
        atomic_store_explicit(&mm->header->frames_hint, frame, memory_order_relaxed);
}

void frame_drop(struct mm *mm, uint64_t frame) { release(mm, frame); }

int frame_free(struct mm *mm, uint64_t frame)
{
    if (fallocate(mm->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(mm->frames_at + frame * PAGE_SIZE), PAGE_SIZE))
        return -errno;
    release(mm, frame);
    return 0;
}
