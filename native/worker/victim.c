/*
 * worker/victim.c - the commands of `bench shootdown`: a thread that notices when it does
 * not run, and calls that take pages away.
 */
#define _GNU_SOURCE
#include "worker/victim.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "worker/figures.h"

/* Between two looks at the clock: less is the look itself, more is the scheduler's doing, not an
 * interrupt's. */
#define LOST_MIN_NS 500u
#define LOST_MAX_NS 1000000u

static pthread_t thread;
static _Atomic int thread_id;
static atomic_bool running;
static _Atomic uint64_t lost_ns;

static void *spin(void *unused)
{
    uint64_t last = now_ns();

    (void)unused;
    atomic_store(&thread_id, gettid());
    while (atomic_load_explicit(&running, memory_order_relaxed)) {
        const uint64_t now = now_ns(), gap = now - last;

        if (gap > LOST_MIN_NS && gap < LOST_MAX_NS)
            atomic_fetch_add(&lost_ns, gap);
        last = now;
    }
    return NULL;
}

int run_spin(struct worker *w, const struct arguments *args)
{
    (void)args;
    if (atomic_exchange(&running, true))
        return fail(w, "spin: it does already", -EBUSY);
    atomic_store(&thread_id, 0);
    const int err = pthread_create(&thread, NULL, spin, NULL);
    if (err) {
        atomic_store(&running, false);
        return fail(w, "pthread_create", -err);
    }
    while (!atomic_load(&thread_id))
        usleep(100);
    w->value = atomic_load(&thread_id);
    return 0;
}

int run_lost(struct worker *w, const struct arguments *args)
{
    (void)args;
    w->value = (int64_t)atomic_load(&lost_ns);
    return 0;
}

int run_still(struct worker *w, const struct arguments *args)
{
    (void)args;
    if (!atomic_exchange(&running, false))
        return fail(w, "still: nothing spins", -EINVAL);
    pthread_join(thread, NULL);
    return 0;
}

int run_dontneed(struct worker *w, const struct arguments *args)
{
    char *start = (char *)w->memory + args->number[0];

    if (w->backend == NOTHING)
        return fail(w, "dontneed: nothing is mapped", -EINVAL);
    return madvise(start, args->number[1], MADV_DONTNEED) ? fail(w, "madvise", -errno) : 0;
}

int run_pageout(struct worker *w, const struct arguments *args)
{
    const struct iovec range = {(void *)(uintptr_t)args->number[1], args->number[2]};
    const int pidfd = (int)syscall(SYS_pidfd_open, (long)args->number[0], 0L);

    if (pidfd < 0)
        return fail(w, "pidfd_open", -errno);
    const long done = syscall(SYS_process_madvise, (long)pidfd, &range, 1L, (long)MADV_PAGEOUT, 0L);
    const int err = done < 0 ? fail(w, "process_madvise", -errno) : 0;
    close(pidfd);
    return err;
}
