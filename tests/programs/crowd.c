/*
 * crowd.c - the actor's threads that touch memory all the time.
 *
 * They share a page of plain memory with the test, struct board of crowd.h: the test writes the
 * present phase there, and each actor what it has seen. A store that began and ended within one
 * phase must have had that phase's outcome, whatever the scheduler did.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "actor.h"
#include "crowd.h"

#define BOARD_BYTES (64 * 1024)
#define THREADS_MAX 64

static struct job jobs[THREADS_MAX];
static pthread_t threads[THREADS_MAX];
static unsigned running;
static void *(*work_of[THREADS_MAX])(void *);
static sem_t started;

static void *start(void *arg)
{
    struct job *job = arg;

    sem_post(&started);
    return work_of[job - jobs](job);
}

/* Returns when all threads run: a child of fork(2) must not copy a lock that a thread holds while
 * it starts. AddressSanitizer's (of GCC 12) hangs the child's own threads. */
void crowd_start(unsigned count, void *(*work)(void *), const struct job *job)
{
    const unsigned before = running;

    if (sem_init(&started, 0, 0))
        abort();
    for (unsigned i = 0; i < count && running < THREADS_MAX; i++, running++) {
        jobs[running] = *job;
        jobs[running].seed += i;
        work_of[running] = work;
        if (pthread_create(&threads[running], NULL, start, &jobs[running]))
            abort();
    }
    for (unsigned i = before; i < running; i++)
        while (sem_wait(&started))
            ;
}

static void join(void)
{
    while (running)
        pthread_join(threads[--running], NULL);
}

struct board *board_at(int fd)
{
    struct board *board = mmap(NULL, BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (board == MAP_FAILED)
        abort();
    return board;
}

static void *hammer(void *arg)
{
    struct job *job = arg;
    struct trap trap;

    for (volatile uint64_t i = job->seed;; i++) {
        volatile uint64_t *at = (volatile uint64_t *)(job->start + i % job->pages * PAGE);
        volatile uint64_t before = atomic_load(&job->board->phase);
        volatile bool stored = false;

        if (before % 4 == STOP)
            return NULL;
        if (TRY(trap)) {
            *at = i;
            stored = true;
        }
        trap_current = NULL;
        bool maperr = !stored && trap.signo == SIGSEGV && trap.code == SEGV_MAPERR &&
                      trap.addr == (uintptr_t)at;
        bool same = atomic_load(&job->board->phase) == before;
        atomic_fetch_add(stored ? &job->seen->stored : &job->seen->refused, 1);
        if ((!stored && !maperr) || (same && stored && before % 4 == GONE) ||
            (same && !stored && before % 4 == THERE))
            atomic_fetch_add(&job->seen->wrong, 1);
    }
}

/* Stores to [address, +pages) in each of some threads, until the board says stop. */
void crowd_hammer(const uint64_t *arg) /* board fd, number on it, address, pages, threads */
{
    struct board *board = board_at((int)arg[0]);
    struct job job = {
        .board = board, .seen = &board->seen[arg[1]], .start = arg[2], .pages = arg[3]};

    crowd_start((unsigned)arg[4], hammer, &job);
    reply(-1, "ok");
}

static void *gaze(void *arg)
{
    struct job *job = arg;
    struct trap trap;

    for (volatile uint64_t i = job->seed;; i++) {
        const volatile uint64_t *at = (volatile uint64_t *)(job->start + i % job->pages * PAGE);
        volatile uint64_t before = atomic_load(&job->board->phase);
        volatile bool loaded = false;

        if (before % 4 == STOP)
            return NULL;
        if (TRY(trap)) {
            (void)*at;
            loaded = true;
        }
        trap_current = NULL;
        bool refused = !loaded && trap.signo == SIGSEGV && trap.addr == (uintptr_t)at;
        bool same = atomic_load(&job->board->phase) == before;
        atomic_fetch_add(loaded ? &job->seen->stored : &job->seen->refused, 1);
        if ((!loaded && !refused) || (same && loaded && before % 4 == GONE) ||
            (same && !loaded && before % 4 == THERE))
            atomic_fetch_add(&job->seen->wrong, 1);
    }
}

/* Loads from [address, +pages) in each of some threads, until the board says stop. */
void crowd_gaze(const uint64_t *arg) /* board fd, number on it, address, pages, threads */
{
    struct board *board = board_at((int)arg[0]);
    struct job job = {
        .board = board, .seen = &board->seen[arg[1]], .start = arg[2], .pages = arg[3]};

    crowd_start((unsigned)arg[4], gaze, &job);
    reply(-1, "ok");
}

uint64_t next_random(uint64_t *state) /* xorshift64 */
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static void *flood(void *arg)
{
    struct job *job = arg;
    uint64_t state = job->seed * 0x9e3779b97f4a7c15ull | 1;

    while (atomic_load_explicit(&job->board->phase, memory_order_relaxed) % 4 != STOP) {
        uintptr_t page = job->start + next_random(&state) % job->pages * job->stride;

        *(volatile uint64_t *)page = state;
        /* Take it out of this process's own tables again: each access is a fault, for ever. */
        madvise((void *)page, PAGE, MADV_DONTNEED);
        atomic_fetch_add_explicit(&job->seen->stored, 1, memory_order_relaxed);
    }
    return NULL;
}

/* Touches pages of a range in random order: each is a fault, many need a table. */
void crowd_flood(const uint64_t *arg) /* board fd, number, address, pages, stride, threads, seed */
{
    struct board *board = board_at((int)arg[0]);
    struct job job = {.board = board,
                      .seen = &board->seen[arg[1]],
                      .start = arg[2],
                      .pages = arg[3],
                      .stride = arg[4],
                      .seed = arg[6] * THREADS_MAX};

    crowd_start((unsigned)arg[5], flood, &job);
    reply(-1, "ok");
}

static void *holes(void *arg)
{
    struct job *job = arg;
    struct trap trap;

    for (volatile uint64_t i = 0; i < job->pages; i++) {
        uintptr_t at = job->start + (job->seed * job->pages + i) * job->stride + job->seed;

        if (TRY(trap))
            *(volatile uint8_t *)at = 1;
        else
            job->exact += trap.signo == SIGSEGV && trap.code == SEGV_MAPERR && trap.addr == at;
        trap_current = NULL;
    }
    return NULL;
}

/* Each thread stores to holes of its own, all at the same time; ok: how many signals came to the
 * thread that had made the access, with its exact address. */
void crowd_holes(const uint64_t *arg) /* address, holes a thread, stride, threads */
{
    struct job job = {.start = arg[0], .pages = arg[1], .stride = arg[2]};
    uint64_t exact = 0;

    running = 0;
    crowd_start((unsigned)arg[3], holes, &job);
    join();
    for (unsigned i = 0; i < arg[3]; i++)
        exact += jobs[i].exact;
    reply(-1, "ok %lu", exact);
}

void crowd_join(const uint64_t *arg)
{
    (void)arg;
    join();
    reply(-1, "ok");
}
