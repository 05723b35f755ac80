/*
 * echo.c - the actor's threads that know the right contents of their memory, and code that it runs.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>

#include "actor.h"
#include "crowd.h"

/* A word in a page of the thread's own counts up, one by one. Whatever happens to the mapping, no
 * other value may ever be there. Phase GONE: stores are refused. */
static void *echo(void *arg)
{
    struct job *job = arg;
    volatile uint64_t *at = (volatile uint64_t *)(job->start + job->seed * PAGE);
    volatile uint64_t last = *at;
    struct trap trap;

    for (;;) {
        volatile uint64_t before = atomic_load(&job->board->phase);
        volatile bool stored = false, other = false;

        if (before % 4 == STOP)
            return NULL;
        if (TRY(trap)) {
            other = *at != last;
            *at = last + 1;
            stored = true;
        }
        trap_current = NULL;
        bool same = atomic_load(&job->board->phase) == before;
        if (stored)
            last++;
        atomic_fetch_add(stored ? &job->seen->stored : &job->seen->refused, 1);
        if (other || (!stored && trap.signo != SIGSEGV) || (same && stored && before % 4 == GONE) ||
            (same && !stored && before % 4 == THERE))
            atomic_fetch_add(&job->seen->wrong, 1);
    }
}

void echo_count(const uint64_t *arg) /* board fd, number on it, address, threads */
{
    struct board *board = board_at((int)arg[0]);
    struct job job = {.board = board, .seen = &board->seen[arg[1]], .start = arg[2]};

    crowd_start((unsigned)arg[3], echo, &job);
    reply(-1, "ok");
}

void echo_call(const uint64_t *arg) /* address of a function; ok: what it returns */
{
    struct trap trap;

    if (TRY(trap))
        reply(-1, "ok %d", ((int (*)(void))arg[0])());
    else
        reply_signal(&trap);
    trap_current = NULL;
}
