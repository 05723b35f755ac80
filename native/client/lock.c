/* lock.c - a lock of two processes in one address space: futex(2); see lock.h. */
#define _GNU_SOURCE
#include "client/lock.h"

#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum lock_bits {
    TAKEN = 1,
    WAITED = 2, /* somebody sleeps until it is free */
    SHADOW = 4, /* the shadow has it */
    NUDGED = 8,
};

/* How often the program looks whether the shadow still lives. */
#define LOOK_NS 50000000

static void wake(struct lock *lock)
{
    syscall(SYS_futex, &lock->word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Sleeps as long as the word is `seen`, marked as waited for, but no longer than LOOK_NS. */
static void sleep_while(struct lock *lock, uint32_t seen)
{
    const struct timespec limit = {.tv_nsec = LOOK_NS};

    if (seen & WAITED || atomic_compare_exchange_strong(&lock->word, &seen, seen | WAITED))
        syscall(SYS_futex, &lock->word, FUTEX_WAIT_PRIVATE, seen | WAITED, &limit, NULL, 0);
}

void lock_take(struct lock *lock, const _Atomic int *shadow)
{
    for (;;) {
        uint32_t seen = 0;

        if (atomic_compare_exchange_strong(&lock->word, &seen, TAKEN))
            return;
        if (seen & SHADOW && !atomic_load(shadow))
            atomic_compare_exchange_strong(&lock->word, &seen, 0);
        else
            sleep_while(lock, seen);
    }
}

void lock_release(struct lock *lock)
{
    if (atomic_exchange(&lock->word, 0) & WAITED)
        wake(lock);
}

bool lock_try(struct lock *lock)
{
    uint32_t seen = 0;

    atomic_fetch_and(&lock->word, ~(uint32_t)NUDGED);
    return atomic_compare_exchange_strong(&lock->word, &seen, TAKEN | SHADOW);
}

void lock_wait(struct lock *lock)
{
    const uint32_t seen = atomic_load(&lock->word);

    if (seen & TAKEN && !(seen & NUDGED))
        sleep_while(lock, seen);
}

void lock_nudge(struct lock *lock)
{
    atomic_fetch_or(&lock->word, NUDGED);
    wake(lock);
}

void lock_abandon(struct lock *lock)
{
    if (atomic_load(&lock->word) & SHADOW)
        lock_release(lock);
}

void lock_reset(struct lock *lock) { atomic_store(&lock->word, 0); }
