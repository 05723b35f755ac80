/*
 * lock.h - an attachment's lock, which the program and its shadow share (shadow.h). It is our
 * own, because the C library's leaves out what makes a lock safe where it knows of one thread
 * only, and it counts on thread-local storage that a shadow has not.
 */
#ifndef MSHARE_LOCK_H
#define MSHARE_LOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct lock {
    _Atomic uint32_t word; /* enum lock_bits */
};

/* Takes the lock, for the program. `shadow`: 0 once the shadow has ended; it may have been
 * killed while it had the lock, which is then the program's. */
void lock_take(struct lock *lock, const _Atomic int *shadow);
void lock_release(struct lock *lock);
/* For the shadow: whether it has got the lock. Otherwise lock_wait() returns when it may have
 * become free, or when lock_nudge() was called since the last lock_try(). */
bool lock_try(struct lock *lock);
void lock_wait(struct lock *lock);
/* For the program, which has the lock: a shadow that waits for it is to look for a request. */
void lock_nudge(struct lock *lock);
/* For the shadow: it no longer has the lock, if it had it. */
void lock_abandon(struct lock *lock);
/* In a forked child: nobody has it. */
void lock_reset(struct lock *lock);

#endif
