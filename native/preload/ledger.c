/*
 * preload/ledger.c - which page tables would be shared, and why some are not any more: ledger.h.
 *
 *   mapped        tttttttttttttttttttttttt   a table each
 *   mprotect          ^^^^^                  of parts of three tables
 *   ranges        sssspppppsssssssssssssss   s: shared, p: its own since an mprotect
 */
#define _GNU_SOURCE
#include "preload/ledger.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/layout.h"

#define RANGES_MAX 1000u

struct range {
    uint64_t mapping; /* which mmap(2) made it: the same in the children that inherited it */
    uint64_t start, end;
    uint64_t cause;
};

/* msharefs/lab/shared_pt.py reads this from outside. */
struct ledger {
    char magic[8];
    _Atomic uint32_t turn; /* odd while it is being changed */
    uint32_t count;
    uint64_t inexact; /* how often there was no room: then more counts as unshared than is */
    struct range ranges[RANGES_MAX];
};

static const char magic[8] = "SHAREDPT";
static struct ledger *ledger; /* protected by the lock, as all that is in it */
static uint32_t made;         /* mappings so far; protected by the lock */

/* Everything that was ever added lies in [low, high). */
static _Atomic uint64_t low = UINT64_MAX, high;

/* Taken last, whatever else is held. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sigset_t holder_mask; /* protected by the lock */

/* A signal handler that unmaps memory must not wait for its own thread. */
static void take_lock(void)
{
    sigset_t all, mask;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    pthread_mutex_lock(&lock);
    holder_mask = mask;
    if (ledger)
        atomic_fetch_add(&ledger->turn, 1);
}

static void leave_lock(void)
{
    const sigset_t mask = holder_mask;

    if (ledger && atomic_load(&ledger->turn) % 2)
        atomic_fetch_add(&ledger->turn, 1);
    pthread_mutex_unlock(&lock);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

/* Registered before the client's own handlers, and so called after them: nothing is taken after
 * this lock. */
__attribute__((constructor(101))) static void follow_forks(void)
{
    pthread_atfork(take_lock, leave_lock, leave_lock);
}

static uint64_t table_down(uint64_t addr) { return addr & ~(PMD_SIZE - 1); }

static uint64_t table_up(uint64_t addr) { return table_down(addr + PMD_SIZE - 1); }

static uint64_t lesser(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t greater(uint64_t a, uint64_t b) { return a > b ? a : b; }

static bool near(uint64_t start, uint64_t end)
{
    return start < end && start < atomic_load_explicit(&high, memory_order_relaxed) &&
           end > atomic_load_explicit(&low, memory_order_relaxed);
}

static struct ledger *make_ledger(void)
{
    const int fd = memfd_create("msharefs-shared-pt", MFD_CLOEXEC);
    struct ledger *new = MAP_FAILED;

    if (fd < 0)
        return NULL;
    if (!ftruncate(fd, sizeof *new))
        new = mmap(NULL, sizeof *new, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    close(fd);
    if (new == MAP_FAILED)
        return NULL;
    memcpy(new->magic, magic, sizeof magic);
    return new;
}

static bool add_range(uint64_t mapping, uint64_t start, uint64_t end, uint64_t cause)
{
    if (ledger->count == RANGES_MAX)
        return false;
    ledger->ranges[ledger->count++] = (struct range){mapping, start, end, cause};
    return true;
}

int ledger_add(uint64_t start, uint64_t end)
{
    int err = 0;

    take_lock();
    if (!ledger)
        ledger = make_ledger();
    if (!ledger || !add_range((uint64_t)getpid() << 32 | ++made, start, end, LEDGER_SHARED)) {
        err = -ENOMEM;
    } else {
        atomic_store(&low, lesser(low, start));
        atomic_store(&high, greater(high, end));
    }
    leave_lock();
    return err;
}

bool ledger_has(const void *addr, size_t length)
{
    const uint64_t start = (uintptr_t)addr, end = start + length;
    bool has = false;

    if (!near(start, end))
        return false;
    take_lock();
    for (uint32_t i = 0; ledger && i < ledger->count; i++)
        has |= ledger->ranges[i].start < end && ledger->ranges[i].end > start;
    leave_lock();
    return has;
}

/* Cuts [start, end) out of a range: what is before stays in its place, what is after becomes
 * another one. `new` is the cause for what is between; NULL: that is gone. */
static void cut(uint32_t i, uint64_t start, uint64_t end, const uint64_t *new)
{
    const struct range old = ledger->ranges[i];
    uint32_t count = ledger->count - 1;

    count += old.start < start;
    count += old.end > end;
    count += new != NULL;
    if (count > RANGES_MAX) {
        ledger->inexact++;
        ledger->ranges[i].cause = new ? *new : old.cause;
        return;
    }
    ledger->ranges[i] = ledger->ranges[--ledger->count];
    if (old.start < start)
        add_range(old.mapping, old.start, start, old.cause);
    if (old.end > end)
        add_range(old.mapping, end, old.end, old.cause);
    if (new)
        add_range(old.mapping, start, end, *new);
}

/* Does so with all ranges there; the first cause of a table stays. */
static void cut_all(uint64_t start, uint64_t end, const uint64_t *new)
{
    for (uint32_t i = start < end ? ledger->count : 0; i--;) {
        const struct range *at = &ledger->ranges[i];

        if (at->start < end && at->end > start && (!new || at->cause == LEDGER_SHARED))
            cut(i, greater(at->start, start), lesser(at->end, end), new);
    }
}

static void change(uint64_t start, uint64_t end, uint64_t cause)
{
    if (cause == LEDGER_MUNMAP)
        cut_all(table_up(start), table_down(end), NULL);
    cut_all(table_down(start), table_up(end), &cause);
}

void ledger_changed(const void *addr, size_t length, enum ledger_cause cause)
{
    const uint64_t start = (uintptr_t)addr, end = start + length;

    if (!near(start, end))
        return;
    take_lock();
    if (ledger)
        change(start, end, cause);
    leave_lock();
}

void ledger_moved(const void *old, size_t old_size, const void *got, size_t new_size, bool kept)
{
    const uint64_t start = (uintptr_t)old, end = start + old_size;
    const uint64_t to = (uintptr_t)got;

    if (!near(start, end) || !ledger_has(old, old_size))
        return;
    if (got == old) {
        ledger_changed(old, lesser(old_size, new_size), LEDGER_MREMAP);
        if (new_size < old_size)
            ledger_changed((const char *)old + new_size, old_size - new_size, LEDGER_MUNMAP);
        return;
    }
    ledger_changed(old, old_size, kept ? LEDGER_MREMAP : LEDGER_MUNMAP);
    if (ledger_add(table_down(to), table_up(to + new_size)))
        return;
    ledger_changed(got, new_size, LEDGER_MREMAP);
}
