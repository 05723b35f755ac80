/* unshared.c - what the program has changed of a window for itself; see unshared.h. */
#include "client/unshared.h"

#include <errno.h>
#include <stdlib.h>

#include "core/layout.h"

/* What a change may add: both ends of its spans, and both of its own. */
#define ENDS_MAX 4u

/* The first part that ends after `offset`, or the count. */
static unsigned find(const struct unshared *unshared, uint64_t offset)
{
    unsigned low = 0, high = unshared->count;

    while (low < high) {
        const unsigned middle = low + (high - low) / 2;

        if (unshared->list[middle].end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void append(struct unshared *to, uint64_t start, uint64_t end, int what)
{
    struct unshared_part *last = to->count ? &to->list[to->count - 1] : NULL;

    if (start >= end)
        return;
    if (last && last->end == start && last->what == what)
        last->end = end;
    else
        to->list[to->count++] = (struct unshared_part){start, end, what};
}

/* Appends what [start, end) has now, all of it with tables of its own. */
static void append_kept(struct unshared *to, const struct unshared *now, uint64_t start,
                        uint64_t end)
{
    while (start < end) {
        int what;
        const uint64_t stop = unshared_run(now, start, end, &what);

        append(to, start, stop, what);
        start = stop;
    }
}

int unshared_change(const struct unshared *now, uint64_t start, uint64_t end, int what,
                    struct unshared *next)
{
    const uint64_t first = start & ~(PMD_SIZE - 1), last = (end + PMD_SIZE - 1) & ~(PMD_SIZE - 1);

    *next = (struct unshared){0};
    /* Between two parts of the list there may be one that follows. */
    next->list = malloc((2ull * now->count + 1 + ENDS_MAX) * sizeof *next->list);
    if (!next->list)
        return -ENOMEM;
    for (unsigned i = 0; i < now->count && now->list[i].start < first; i++)
        append(next, now->list[i].start, now->list[i].end < first ? now->list[i].end : first,
               now->list[i].what);
    append_kept(next, now, first, start);
    if (what == UNSHARED_KEEP)
        append_kept(next, now, start, end);
    else
        append(next, start, end, what);
    append_kept(next, now, end, last);
    for (unsigned i = find(now, last); i < now->count; i++)
        append(next, now->list[i].start > last ? now->list[i].start : last, now->list[i].end,
               now->list[i].what);
    return 0;
}

void unshared_free(struct unshared *unshared)
{
    free(unshared->list);
    *unshared = (struct unshared){0};
}

int unshared_at(const struct unshared *unshared, uint64_t offset)
{
    const unsigned at = find(unshared, offset);

    return at < unshared->count && unshared->list[at].start <= offset ? unshared->list[at].what
                                                                      : UNSHARED_FOLLOWS;
}

uint64_t unshared_run(const struct unshared *unshared, uint64_t start, uint64_t end, int *what)
{
    const unsigned at = find(unshared, start);
    uint64_t stop = end;

    *what = UNSHARED_FOLLOWS;
    if (at < unshared->count && unshared->list[at].start <= start) {
        *what = unshared->list[at].what;
        stop = unshared->list[at].end;
    } else if (at < unshared->count) {
        stop = unshared->list[at].start;
    }
    return stop < end ? stop : end;
}

uint64_t unshared_tables(const struct unshared *unshared)
{
    uint64_t tables = 0, next = 0; /* the first span that is not counted yet */

    for (unsigned i = 0; i < unshared->count; i++) {
        const struct unshared_part *part = &unshared->list[i];
        const uint64_t first = part->start / PMD_SIZE, end = (part->end - 1) / PMD_SIZE + 1;

        if (part->what == UNSHARED_GONE || end <= next)
            continue;
        tables += end - (first > next ? first : next);
        next = end;
    }
    return tables;
}
