/* hidden.c - one bit for each descriptor; see hidden.h. No locks: close(2) may be called
 * from signal handlers. */
#include "core/hidden.h"

#include <stdatomic.h>
#include <stdint.h>

#define WORDS (HIDDEN_FDS / 64)

static _Atomic uint64_t bits[WORDS];
static _Atomic unsigned words_used; /* only grows */
static bool none;

void hidden_none(bool yes) { none = yes; }

bool hidden_any(void) { return !none; }

static uint64_t bit(int fd) { return 1ull << fd % 64; }

void hidden_add(int fd)
{
    if (fd < 0 || (unsigned)fd >= HIDDEN_FDS)
        return;
    unsigned seen = atomic_load(&words_used), wanted = (unsigned)fd / 64 + 1;
    while (seen < wanted && !atomic_compare_exchange_weak(&words_used, &seen, wanted))
        ;
    atomic_fetch_or(&bits[fd / 64], bit(fd));
}

void hidden_remove(int fd)
{
    if (hidden_is(fd))
        atomic_fetch_and(&bits[fd / 64], ~bit(fd));
}

bool hidden_is(int fd)
{
    return fd >= 0 && (unsigned)fd < HIDDEN_FDS &&
           atomic_load_explicit(&bits[fd / 64], memory_order_relaxed) & bit(fd);
}

int hidden_next(unsigned first, unsigned last)
{
    for (unsigned word = first / 64; word < atomic_load(&words_used) && word <= last / 64; word++) {
        uint64_t set = atomic_load_explicit(&bits[word], memory_order_relaxed);

        if (word == first / 64)
            set &= ~0ull << first % 64;
        if (!set)
            continue;
        unsigned fd = word * 64 + (unsigned)__builtin_ctzll(set);
        return fd <= last ? (int)fd : -1;
    }
    return -1;
}
