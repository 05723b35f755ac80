/* touched.c - the spans a client has touched; see touched.h. */
#define _GNU_SOURCE
#include "core/touched.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#define WORD_SPANS 64ull
#define PAGE_WORDS (PAGE_SIZE / sizeof(uint64_t))
#define PAGE_SPANS (PAGE_WORDS * WORD_SPANS)
/* For one call of touched_change(): it takes some milliseconds. */
#define TURN_BYTES (4ull << 30)
#define TURN_CALLS 1024u

static _Atomic uint64_t *bitmap(const struct mm *mm, unsigned slot)
{
    return (_Atomic uint64_t *)(mm->touched + slot * mm->touched_stride);
}

static uint64_t page_bit(uint64_t span) { return 1ull << span / PAGE_SPANS % 64; }

/* There is one writer, so load and store; a bit that is set already is not written. */
static void set_bit(_Atomic uint64_t *word, uint64_t bit)
{
    uint64_t old = atomic_load_explicit(word, memory_order_relaxed);

    if (!(old & bit))
        atomic_store_explicit(word, old | bit, memory_order_relaxed);
}

void touched_mark(struct mm *mm, unsigned slot, uint64_t offset, uint64_t bytes)
{
    uint64_t last = (offset + bytes - 1) / PMD_SIZE;

    for (uint64_t span = offset / PMD_SIZE; span <= last; span++) {
        /* First the page's bit: touched_clear() relies on it. */
        set_bit(&mm->slots[slot].touched, page_bit(span));
        set_bit(&bitmap(mm, slot)[span / WORD_SPANS], 1ull << span % WORD_SPANS);
    }
}

bool touched_has(const struct mm *mm, unsigned slot, uint64_t offset)
{
    uint64_t span = offset / PMD_SIZE;

    /* A bitmap page that is not in use is not read: that would give it memory. */
    if (!(atomic_load_explicit(&mm->slots[slot].touched, memory_order_relaxed) & page_bit(span)))
        return false;
    const uint64_t word = atomic_load_explicit(&bitmap(mm, slot)[span / WORD_SPANS],
                                               memory_order_relaxed);
    return word >> span % WORD_SPANS & 1;
}

void touched_unmark(struct mm *mm, unsigned slot, uint64_t offset)
{
    uint64_t span = offset / PMD_SIZE;
    _Atomic uint64_t *word = &bitmap(mm, slot)[span / WORD_SPANS];
    uint64_t old = atomic_load_explicit(word, memory_order_relaxed);

    if (old & 1ull << span % WORD_SPANS)
        atomic_store_explicit(word, old & ~(1ull << span % WORD_SPANS), memory_order_relaxed);
}

/* The first span in [span, end) whose bit is `set`, or `end`. Bitmap pages that are
 * not in use are not read: that would give them memory. */
static uint64_t find_span(const struct mm *mm, unsigned slot, uint64_t span, uint64_t end, bool set)
{
    uint64_t pages = atomic_load_explicit(&mm->slots[slot].touched, memory_order_relaxed);
    const _Atomic uint64_t *words = bitmap(mm, slot);

    while (span < end) {
        uint64_t word = 0, step = PAGE_SPANS;

        if (pages & page_bit(span)) {
            word = atomic_load_explicit(&words[span / WORD_SPANS], memory_order_relaxed);
            step = WORD_SPANS;
        }
        word = set ? word : ~word;
        word &= ~0ull << span % WORD_SPANS;
        if (word) {
            span &= ~(WORD_SPANS - 1);
            span |= (uint64_t)__builtin_ctzll(word);
            break;
        }
        span = (span & ~(step - 1)) + step;
    }
    return span < end ? span : end;
}

bool touched_run(const struct mm *mm, unsigned slot, uint64_t *start, uint64_t end, uint64_t *stop)
{
    uint64_t limit = mm->host_end - HOST_BASE;

    if (end > limit)
        end = limit;
    if (*start >= end)
        return false;
    uint64_t spans = (end + PMD_SIZE - 1) / PMD_SIZE;
    uint64_t first = find_span(mm, slot, *start / PMD_SIZE, spans, true);
    if (first == spans)
        return false;
    uint64_t after = find_span(mm, slot, first, spans, false);
    if (first * PMD_SIZE > *start)
        *start = first * PMD_SIZE;
    *stop = after * PMD_SIZE < end ? after * PMD_SIZE : end;
    return true;
}

void touched_clear(struct mm *mm, unsigned slot)
{
    if (atomic_load(&mm->slots[slot].touched))
        fallocate(mm->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(mm->touched_at + slot * mm->touched_stride), (off_t)mm->touched_stride);
}

int64_t touched_change(const struct mm *mm, unsigned slot, int uffd, int pid, uint64_t start,
                       uint64_t end, enum uffd_change change)
{
    unsigned calls = TURN_CALLS;
    uint64_t first, last, stop, done = 0;
    char maps[32];

    if (slot >= MM_SLOTS)
        return -EINVAL;
    /* Elsewhere it has no window, whatever its bitmap says. */
    mm_part(mm, slot, &first, &last);
    if (start < first)
        start = first;
    if (last > end)
        last = end;
    snprintf(maps, sizeof maps, "/proc/%d/maps", pid);
    while (touched_run(mm, slot, &start, last, &stop)) {
        if (done >= TURN_BYTES || !calls)
            return (int64_t)start;
        if (stop - start > TURN_BYTES)
            stop = start + TURN_BYTES;
        const uint64_t at = mm->slots[slot].base + (start - first);
        const int64_t got = uffd_change(uffd, maps, at, stop - start, change, &calls);
        if (got < 0)
            return got;
        done += stop - start;
        start = (uint64_t)got < last - start ? start + (uint64_t)got : last;
    }
    return (int64_t)end;
}
