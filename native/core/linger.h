/*
 * linger.h - staying awake for the next fault or request, which is likely to come soon.
 *
 * Waking a thread that sleeps on another processor takes longer than a whole fault or
 * request; in a virtual machine, ten times as long. Both come in bursts.
 */
#ifndef MSHARE_LINGER_H
#define MSHARE_LINGER_H

#include <sched.h>
#include <stdint.h>
#include <time.h>

/* How long to look before sleeping. */
#define LINGER_NS 50000
/* A sched_yield(2) that took longer has let another thread run. */
#define YIELDED_NS 3000

static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Calls `look` until it finds something, but for LINGER_NS at most, and only until another thread
 * has wanted the processor. Returns the last result of `look`. */
static inline int linger(int (*look)(void *), void *arg)
{
    const uint64_t start = clock_ns(CLOCK_MONOTONIC);
    uint64_t now = start, before;
    int found;

    do {
        before = now;
        sched_yield();
        found = look(arg);
        now = clock_ns(CLOCK_MONOTONIC);
    } while (!found && now - start < LINGER_NS && now - before < YIELDED_NS);
    return found;
}

#endif
