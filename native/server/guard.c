/* guard.c - a host mm that a client makes shorter; see guard.h. */
#define _GNU_SOURCE
#include "server/guard.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

/* More than a process has descriptors by default (fs.nr_open). */
#define GUARDED_MAX (1u << 20)

/* Read by the handler, in any thread, while others are added. */
struct guarded {
    _Atomic uintptr_t start; /* 0: the entry is free */
    uint64_t bytes;
    _Atomic bool cut;
};

static struct guarded *table; /* memory only where used */
static _Atomic unsigned used;
static struct sigaction before;

static struct guarded *find_guarded(uintptr_t addr)
{
    for (unsigned i = 0; i < used; i++) {
        const uintptr_t start = atomic_load(&table[i].start);

        if (start && addr >= start && addr - start < table[i].bytes)
            return &table[i];
    }
    return NULL;
}

/* Only system calls that are safe in a handler. */
static bool replace_by_zeros(struct guarded *guarded)
{
    void *const start = (void *)atomic_load(&guarded->start);

    atomic_store(&guarded->cut, true);
    return mmap(start, guarded->bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == start;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    const int saved = errno;
    struct guarded *guarded = info->si_code > 0 ? find_guarded((uintptr_t)info->si_addr)
                                                : NULL; /* else kill(2) */

    if (guarded && replace_by_zeros(guarded)) {
        errno = saved;
        return;
    }
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {
        signal(number, SIG_DFL); /* the access fails again */
        if (info->si_code <= 0)
            raise(number);
    }
    errno = saved;
}

static int start_guarding(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    void *got = mmap(NULL, GUARDED_MAX * sizeof *table, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (got == MAP_FAILED)
        return -errno;
    table = got;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &before) ? -errno : 0;
}

int guard_add(const struct mm *mm)
{
    unsigned at = 0;
    int err = table ? 0 : start_guarding();

    if (err)
        return err;
    while (at < used && atomic_load(&table[at].start))
        at++;
    if (at == GUARDED_MAX)
        return -ENOMEM;
    table[at].bytes = mm->map_size;
    atomic_store(&table[at].cut, false);
    atomic_store(&table[at].start, (uintptr_t)mm->header);
    if (at == used)
        used = at + 1;
    return 0;
}

static struct guarded *guarded_of(const struct mm *mm)
{
    return mm->header ? find_guarded((uintptr_t)mm->header) : NULL;
}

void guard_remove(const struct mm *mm)
{
    struct guarded *guarded = guarded_of(mm);

    if (guarded)
        atomic_store(&guarded->start, 0);
}

bool guard_cut(const struct mm *mm)
{
    const struct guarded *guarded = guarded_of(mm);

    return guarded && atomic_load(&guarded->cut);
}
