/*
 * worker/touch.c - accesses to be timed. `order` chooses the pages and their order
 * beforehand, so that the same loop runs for every order and every kind of memory,
 * and nothing but the accesses is measured.
 */
#define _GNU_SOURCE
#include "worker/touch.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* Skew of the Zipf order, as used by YCSB and the literature after it. */
#define ZIPF_THETA 0.99
#define LINE_WORDS 8u /* words of a cache line */

static uint64_t next_random(uint64_t *state) /* SplitMix64 */
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void shuffle(uint32_t *page, uint64_t pages, uint64_t *state)
{
    for (uint64_t i = pages; i > 1; i--) {
        uint64_t j = next_random(state) % i;
        uint32_t swap = page[i - 1];

        page[i - 1] = page[j];
        page[j] = swap;
    }
}

/* Ranks 0..n-1 by Zipf's law, drawn in constant time: Gray et al., "Quickly
 * generating billion-record synthetic databases", SIGMOD 1994. */
struct zipf {
    double n, zeta, alpha, eta;
};

static struct zipf zipf_of(uint64_t n)
{
    struct zipf z = {.n = (double)n, .alpha = 1 / (1 - ZIPF_THETA)};

    for (uint64_t i = 1; i <= n; i++)
        z.zeta += pow((double)i, -ZIPF_THETA);
    z.eta = (1 - pow(2 / z.n, 1 - ZIPF_THETA)) / (1 - (1 + pow(2, -ZIPF_THETA)) / z.zeta);
    return z;
}

static uint64_t zipf_draw(const struct zipf *z, uint64_t *state)
{
    double u = (double)(next_random(state) >> 11) * 0x1p-53;

    if (u * z->zeta < 1)
        return 0;
    if (u * z->zeta < 1 + pow(0.5, ZIPF_THETA) || z->n < 3)
        return 1 % (uint64_t)z->n;
    uint64_t rank = (uint64_t)(z->n * pow(z->eta * u - z->eta + 1, z->alpha));
    return rank < (uint64_t)z->n ? rank : (uint64_t)z->n - 1;
}

/* Room for `count` page numbers, in memory that is present before the clock starts. */
static int make_room(struct worker *w, uint64_t count)
{
    if (w->order)
        munmap(w->order, w->order_room);
    w->order_room = count * sizeof *w->order;
    w->order_count = 0;
    w->order = mmap(NULL, w->order_room, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (w->order != MAP_FAILED)
        return 0;
    w->order = NULL;
    return fail(w, "order: memory for it", -errno);
}

int run_order(struct worker *w, const struct arguments *args)
{
    uint64_t seed = args->number[0], first = args->number[1], pages = args->number[2];
    uint64_t count = args->number[3];
    bool zipf = !strcmp(args->text, "zipf"), random = !strcmp(args->text, "random");

    if (!zipf && !random && strcmp(args->text, "sequential"))
        return fail(w, "order: sequential, random or zipf", -EINVAL);
    if (!pages || !count || first + pages > UINT32_MAX || (!zipf && count > pages))
        return fail(w, "order: pages that there are", -EINVAL);
    int err = make_room(w, pages + (zipf ? count : 0));
    if (err)
        return err;
    for (uint64_t i = 0; i < pages; i++)
        w->order[i] = (uint32_t)(first + i);
    if (zipf || random)
        shuffle(w->order, pages, &seed);
    if (zipf) {
        /* Hot pages may lie anywhere: ranks stand for the shuffled pages. */
        struct zipf law = zipf_of(pages);

        for (uint64_t i = 0; i < count; i++)
            w->order[pages + i] = w->order[zipf_draw(&law, &seed)];
        memmove(w->order, w->order + pages, count * sizeof *w->order);
    }
    w->order_count = count;
    return 0;
}

enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_NONE };

static bool parse_access(const char *text, enum access *access)
{
    *access = !strcmp(text, "write") ? ACCESS_WRITE : ACCESS_READ;
    return *access == ACCESS_WRITE || !strcmp(text, "read");
}

/* A word of each page, not always the same one: all first words would share a
 * few sets of the cache. */
static void touch(struct worker *w, enum access access)
{
    volatile uint64_t *memory = w->memory;

    for (uint64_t i = 0; i < w->order_count; i++) {
        uint64_t page = w->order[i];
        volatile uint64_t *word = &memory[page * PAGE_WORDS + page * LINE_WORDS % PAGE_WORDS];

        if (access == ACCESS_WRITE)
            *word = page;
        else
            (void)*word;
    }
    w->pages += w->order_count;
}

static int check_order(struct worker *w)
{
    if (w->backend == NOTHING)
        return fail(w, "nothing is attached", -EINVAL);
    if (!w->order_count)
        return fail(w, "no order of pages was given", -EINVAL);
    for (uint64_t i = 0; i < w->order_count; i++)
        if (w->order[i] >= w->bytes / PAGE)
            return fail(w, "the order has pages that are not attached", -EINVAL);
    return 0;
}

int run_touch(struct worker *w, const struct arguments *args)
{
    enum access access;
    int err = check_order(w);

    if (!err && !parse_access(args->text, &access))
        err = fail(w, "touch: read or write", -EINVAL);
    for (uint64_t pass = 0; !err && pass < args->number[0]; pass++)
        touch(w, access);
    return err;
}

int run_sweep(struct worker *w, const struct arguments *args)
{
    uint64_t passes = args->number[0], bytes = args->number[1];
    volatile uint64_t *memory = w->memory;
    enum access access;

    if (w->backend == NOTHING || bytes > w->bytes)
        return fail(w, "sweep: that much is not attached", -EINVAL);
    if (!parse_access(args->text, &access))
        return fail(w, "sweep: read or write", -EINVAL);
    for (uint64_t pass = 0; pass < passes; pass++) {
        if (access == ACCESS_WRITE)
            for (uint64_t i = 0; i < bytes / sizeof *memory; i += LINE_WORDS)
                memory[i] = pass;
        else
            for (uint64_t i = 0; i < bytes / sizeof *memory; i += LINE_WORDS)
                (void)memory[i];
    }
    w->pages = passes * (bytes / PAGE);
    return 0;
}

int run_fork(struct worker *w, const struct arguments *args)
{
    enum access access = ACCESS_NONE;
    int err = check_order(w);

    if (!err && strcmp(args->text, "nothing") && !parse_access(args->text, &access))
        err = fail(w, "fork: nothing, read or write", -EINVAL);
    for (uint64_t i = 0; !err && i < args->number[0]; i++) {
        int status;
        pid_t child = fork();

        if (child == 0) {
            if (access != ACCESS_NONE)
                touch(w, access);
            _exit(0);
        }
        if (child < 0)
            err = fail(w, "fork", -errno);
        else if (waitpid(child, &status, 0) != child || status)
            err = fail(w, "the child ended badly", -ECHILD);
        if (!err && access != ACCESS_NONE)
            w->pages += w->order_count;
    }
    return err;
}
