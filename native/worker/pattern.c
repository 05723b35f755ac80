/* worker/pattern.c - filling memory with a pattern, and finding words that differ. */
#include "worker/pattern.h"

#include <errno.h>
#include <stdio.h>

/* Pages between two progress lines: about ten lines a second, too few to cost anything. */
#define SPAN_PAGES 16384u

/* The words of a page that hold the pattern: both ends, and two in the middle. */
static const unsigned places[] = {0, PAGE_WORDS / 3, PAGE_WORDS * 2 / 3, PAGE_WORDS - 1};
#define PLACES (sizeof places / sizeof *places)

/* Different for each seed, page and place (the finisher of SplitMix64), so that a
 * page at a wrong address is found, as is a page of an earlier run. */
static uint64_t pattern(uint64_t seed, uint64_t page, unsigned place)
{
    uint64_t x = seed + (page * PLACES + place + 1) * 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void fill_page(struct worker *w, uint64_t seed, uint64_t page)
{
    for (unsigned i = 0; i < PLACES; i++)
        w->memory[page * PAGE_WORDS + places[i]] = pattern(seed, page, i);
}

static void verify_page(struct worker *w, uint64_t seed, uint64_t page)
{
    for (unsigned i = 0; i < PLACES; i++) {
        if (w->memory[page * PAGE_WORDS + places[i]] == pattern(seed, page, i))
            continue;
        if (!w->wrong++)
            w->first_wrong = page;
        return;
    }
}

static int each_page(struct worker *w, const struct arguments *args,
                     void (*visit)(struct worker *, uint64_t, uint64_t))
{
    uint64_t seed = args->number[0], bytes = args->number[1], told = 0;

    if (w->backend == NOTHING)
        return fail(w, "nothing is attached", -EINVAL);
    if (bytes % PAGE || bytes > w->bytes)
        return fail(w, "not a number of pages that is attached", -EINVAL);
    for (w->pages = 0; w->pages < bytes / PAGE; w->pages++) {
        if (w->pages - told == SPAN_PAGES) {
            printf("{\"progress\":%u}\n", SPAN_PAGES * PAGE);
            fflush(stdout);
            told = w->pages;
        }
        visit(w, seed, w->pages);
    }
    return 0;
}

int run_fill(struct worker *w, const struct arguments *args)
{
    return each_page(w, args, fill_page);
}

int run_verify(struct worker *w, const struct arguments *args)
{
    return each_page(w, args, verify_page);
}
