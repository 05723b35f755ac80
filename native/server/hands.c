/* hands.c - see hands.h. */
#define _GNU_SOURCE
#include "server/hands.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/audit.h"
#include "core/linger.h"
#include "core/slots.h"
#include "core/touched.h"
#include "server/hostmm.h"
#include "server/readers.h"

/* More than may be held up (msharefs/server/hands.py). */
#define HANDS_MAX 1100
#define STACK_BYTES (256u << 10)
/* How long others may have to wait for a call. */
#define MOMENT_NS 500000u
/* The first hand stays; the others end when there has been nothing to do for so long. */
#define IDLE_SECONDS 5

enum { NO_HAND, IDLE, CALLED };            /* a hand */
enum { NOT_YET, IT_FINISHES, TAKEN_BACK }; /* hand_call.finishing */

static struct hand {
    _Atomic uint32_t state;
    struct hand_call *call;
    pthread_t thread;
    _Atomic pid_t tid;
    int cpu; /* where it has to run; -1: anywhere */
} hands[HANDS_MAX];

/* Whether the time was over. */
static bool futex_wait(_Atomic uint32_t *word, uint32_t value, const struct timespec *limit)
{
    return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, limit, NULL, 0) &&
           errno == ETIMEDOUT;
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* What the hands do */

static int64_t finish(struct hand_call *call)
{
    uint32_t not_yet = NOT_YET;

    hostmm_reach(call->mm, call->fd);
    if (!atomic_compare_exchange_strong(&call->finishing, &not_yet, IT_FINISHES))
        return -ECANCELED;
    return hostmm_finish(call->mm, call->fd);
}

static int64_t change(struct hand_call *call)
{
    for (unsigned i = 0; i < call->count && !call->dropped; i++) {
        const struct hand_client *client = &call->clients[i];
        int64_t at = (int64_t)call->start;

        call->at = i;
        while (at >= 0 && (uint64_t)at < call->end && !call->dropped)
            at = touched_change(call->mm, (unsigned)client->slot, client->uffd, client->pid,
                                (uint64_t)at, call->end, call->change);
        if (at < 0)
            return at;
    }
    return 0;
}

static int64_t errno_of(int64_t result) { return result < 0 ? -errno : result; }

/* Disabled, and not counting the kernel, so that every process that may watch at all gets it. */
static int64_t watch(pid_t thread)
{
    struct perf_event_attr event = {
        .size = sizeof event,
        .type = PERF_TYPE_SOFTWARE,
        .config = PERF_COUNT_SW_DUMMY,
        .disabled = 1,
        .exclude_kernel = 1,
        .exclude_hv = 1,
    };

    return errno_of(syscall(SYS_perf_event_open, &event, thread, -1, -1, PERF_FLAG_FD_CLOEXEC));
}

static int64_t read_stat(pid_t thread, uint64_t found[2])
{
    enum { FLAGS = 9, START_TIME = 22 }; /* proc_pid_stat(5); the name, which is 2, has anything */
    char text[1024], *at;
    ssize_t size;
    int fd;

    snprintf(text, sizeof text, "/proc/%d/stat", thread);
    fd = open(text, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? -ESRCH : -errno;
    size = read(fd, text, sizeof text - 1);
    if (size < 0)
        size = -errno;
    close(fd);
    if (size < 0)
        return size;
    text[size] = 0;
    at = strrchr(text, ')');
    for (int field = 2; at && field < START_TIME;) {
        at = strchr(at + 1, ' ');
        if (++field == FLAGS && at)
            found[0] = strtoull(at, NULL, 10);
    }
    if (!at)
        return -EIO;
    found[1] = strtoull(at, NULL, 10);
    return 0;
}

static int64_t make(struct hand_call *call)
{
    switch (call->op) {
    case HAND_FINISH:
        return finish(call);
    case HAND_RECOVER:
        return hostmm_recover(call->mm, call->fd);
    case HAND_SWEEP:
        return mm_sweep(call->mm);
    case HAND_MEND:
        return mm_mend(call->mm);
    case HAND_RELEASE:
        return slot_release(call->mm, call->slot, call->claim);
    case HAND_CHANGE:
        return change(call);
    case HAND_FAULT:
        readers_fault(call->mm, call->slot, call->fd, call->ask, call->told);
        return 0;
    case HAND_ENTRIES:
        return entries_catch_up(call->mm, MM_SLOTS, call->fd, call->start, call->end, call->how);
    case HAND_SPAN:
        call->span[0] = call->start;
        return entries_span(call->fd, &call->span[0], call->end, &call->span[1]);
    case HAND_PUNCH:
        return errno_of(fallocate(call->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                  (off_t)call->start, (off_t)call->end));
    case HAND_FETCH:
        return errno_of(syscall(SYS_pidfd_getfd, call->fd, call->slot, 0));
    case HAND_SAME:
        return errno_of(syscall(SYS_kcmp, (pid_t)call->fd, (pid_t)call->slot, KCMP_VM, 0L, 0L));
    case HAND_WATCH:
        return watch((pid_t)call->slot);
    case HAND_STAT:
        return read_stat((pid_t)call->slot, call->span);
    }
    return -ENOSYS;
}

/* Whether there is a call; if not, the hand is no hand any more. */
static bool next_call(struct hand *hand)
{
    const struct timespec limit = {.tv_sec = IDLE_SECONDS};

    while (atomic_load(&hand->state) == IDLE) {
        uint32_t idle = IDLE;

        if (futex_wait(&hand->state, IDLE, hand == hands ? NULL : &limit) &&
            atomic_compare_exchange_strong(&hand->state, &idle, NO_HAND))
            return false;
    }
    return true;
}

static void *run(void *argument)
{
    struct hand *hand = argument;

    hand->tid = gettid();
    while (next_call(hand)) {
        struct hand_call *const call = hand->call;

        call->result = make(call);
        atomic_store(&hand->state, IDLE); /* the next call may come as soon as this one has ended */
        atomic_store(&call->ended, true);
    }
    return NULL;
}

/* What the thread that serves does */

/* A child of fork(2) has none of them. */
static void forget(void) { memset(hands, 0, sizeof hands); }

static int start(struct hand *hand, struct hand_call *call)
{
    pthread_attr_t attr;
    sigset_t all, before;

    static bool known;

    if (!known)
        known = !pthread_atfork(NULL, NULL, forget);
    *hand = (struct hand){.state = CALLED, .call = call, .cpu = -1};
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals are for the threads of Python */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int err = pthread_create(&hand->thread, &attr, run, hand);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (err)
        hand->state = NO_HAND;
    return err ? -EAGAIN : 0;
}

/* The processors where the hand may run: `cpu`, or -1 for all of ours. */
static void keep_to(struct hand *hand, int cpu)
{
    cpu_set_t set;

    if (hand->cpu == cpu || !hand->tid)
        return;
    CPU_ZERO(&set);
    if (cpu >= 0 && cpu < CPU_SETSIZE)
        CPU_SET((size_t)cpu, &set);
    else if (sched_getaffinity(0, sizeof set, &set))
        return;
    if (!sched_setaffinity(hand->tid, sizeof set, &set))
        hand->cpu = cpu;
}

static int give(struct hand_call *call)
{
    for (struct hand *hand = hands; hand < hands + HANDS_MAX; hand++) {
        uint32_t state = atomic_load(&hand->state);

        call->hand = hand;
        if (state == IDLE) {
            keep_to(hand, sched_getcpu());
            hand->call = call;
            if (atomic_compare_exchange_strong(&hand->state, &state, CALLED)) {
                futex_wake(&hand->state);
                return 0;
            }
        }
        if (state == NO_HAND)
            return start(hand, call);
    }
    return -EAGAIN;
}

static bool wait_a_moment(struct hand_call *call)
{
    const uint64_t begun = clock_ns(CLOCK_MONOTONIC);

    do
        sched_yield();
    while (!hands_ended(call) && clock_ns(CLOCK_MONOTONIC) - begun < MOMENT_NS);
    return hands_ended(call);
}

int hands_begin(struct hand_call *call, bool moment)
{
    call->ended = false;
    call->finishing = NOT_YET;
    call->at = 0;
    call->dropped = false;
    const int err = give(call);

    if (err)
        return err;
    if (moment && wait_a_moment(call))
        return 1;
    if (!hands_ended(call))
        keep_to(call->hand, -1);
    return hands_ended(call);
}

bool hands_ended(const struct hand_call *call) { return atomic_load(&call->ended); }

uint64_t hands_spent(const struct hand_call *call)
{
    clockid_t clock;

    return pthread_getcpuclockid(call->hand->thread, &clock) ? 0 : clock_ns(clock);
}

bool hands_take_back(struct hand_call *call)
{
    uint32_t not_yet = NOT_YET;

    return atomic_compare_exchange_strong(&call->finishing, &not_yet, TAKEN_BACK);
}
