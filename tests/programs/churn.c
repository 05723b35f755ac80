/*
 * churn.c - the actor's accesses to more memory than its budget of page tables covers.
 *
 * The first word of a stamped page says which page it is; the second counts additions to it.
 */
#define _GNU_SOURCE
#include <msharefs.h>
#include <signal.h>
#include <sys/mman.h>

#include "actor.h"
#include "crowd.h"

static volatile uint64_t *page_at(uint64_t address, uint64_t page)
{
    return (volatile uint64_t *)(address + page * PAGE);
}

void churn_budget(const uint64_t *arg) /* address, bytes */
{
    if (mshare_budget((void *)arg[0], arg[1]))
        reply_errno();
    else
        reply(-1, "ok");
}

void churn_stamp(const uint64_t *arg) /* address, first page, count, step */
{
    for (uint64_t i = 0; i < arg[2]; i++)
        *page_at(arg[0], arg[1] + i * arg[3]) = arg[1] + i * arg[3] + 1;
    reply(-1, "ok");
}

/* Loads from pages, in order; ok: how many do not have `stamp` (0: their own stamp). */
void churn_visit(const uint64_t *arg) /* address, first page, count, step, passes, stamp */
{
    volatile uint64_t wrong = 0;
    struct trap trap;

    if (TRY(trap)) {
        for (uint64_t pass = 0; pass < arg[4]; pass++)
            for (uint64_t i = 0; i < arg[2]; i++) {
                uint64_t page = arg[1] + i * arg[3];

                wrong += *page_at(arg[0], page) != (arg[5] ? arg[5] - 1 : page + 1);
            }
        reply(-1, "ok %lu", wrong);
    } else {
        reply_signal(&trap);
    }
    trap_current = NULL;
}

/* Loads from stamped pages in the order that the uint32_t in a file give; repeats each group of
 * them some times before the next; ok: how many are wrong. */
void churn_play(const uint64_t *arg) /* address, fd, count, group, times */
{
    const uint32_t *order = mmap(NULL, arg[2] * sizeof *order, PROT_READ, MAP_SHARED | MAP_POPULATE,
                                 (int)arg[1], 0);
    uint64_t wrong = 0;

    if (order == MAP_FAILED) {
        reply_errno();
        return;
    }
    for (uint64_t start = 0; start < arg[2]; start += arg[3])
        for (uint64_t time = 0; time < arg[4]; time++)
            for (uint64_t i = start; i < start + arg[3] && i < arg[2]; i++)
                wrong += *page_at(arg[0], order[i]) != order[i] + 1ul;
    munmap((void *)order, arg[2] * sizeof *order);
    reply(-1, "ok %lu", wrong);
}

static bool stopped(const struct job *job)
{
    return atomic_load_explicit(&job->board->phase, memory_order_relaxed) % 4 == STOP;
}

static void *add(void *arg)
{
    const struct job *job = arg;
    uint64_t state = job->seed * 0x9e3779b97f4a7c15ull | 1;

    while (!stopped(job)) {
        uint64_t page = next_random(&state) % job->pages;
        volatile uint64_t *at = page_at(job->start, page);

        if (*at != page + 1)
            atomic_fetch_add(&job->seen->wrong, 1);
        atomic_fetch_add((_Atomic uint64_t *)(at + 1), 1);
        atomic_fetch_add(&job->seen->stored, 1);
    }
    return NULL;
}

static void *poke(void *arg)
{
    const struct job *job = arg;
    uint64_t state = job->seed * 0x9e3779b97f4a7c15ull | 1;
    struct trap trap;

    while (!stopped(job)) {
        volatile uint64_t *at = page_at(job->start, next_random(&state) % job->pages);
        volatile bool refused = false;

        (void)*at; /* so that it is mapped */
        if (TRY(trap))
            *at = 1;
        else
            refused = trap.signo == SIGSEGV && trap.code == SEGV_ACCERR &&
                      trap.addr == (uintptr_t)at;
        trap_current = NULL;
        atomic_fetch_add(refused ? &job->seen->refused : &job->seen->wrong, 1);
    }
    return NULL;
}

static void threads(const uint64_t *arg, void *(*work)(void *))
{
    struct board *board = board_at((int)arg[0]);
    struct job job = {.board = board,
                      .seen = &board->seen[arg[1]],
                      .start = arg[2],
                      .pages = arg[3],
                      .seed = arg[5] << 8};

    crowd_start((unsigned)arg[4], work, &job);
    reply(-1, "ok");
}

/* Threads that check stamped pages in random order, and add 1 to each. */
void churn_add(const uint64_t *arg) /* board fd, number on it, address, pages, threads, seed */
{
    threads(arg, add);
}

/* Threads that store to pages which are read-only, in random order: each must be refused. */
void churn_poke(const uint64_t *arg) /* as churn_add */ { threads(arg, poke); }
