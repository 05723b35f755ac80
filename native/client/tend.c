/*
 * tend.c - what a shadow does all its life; see tend.h.
 *
 *   faults of the window    serve.c, under the attachment's lock
 *   messages of the server  the same; the shadow can do without a server: faults need only shared
 *                           memory. If it goes away, the shadow knocks again until one answers
 *   the bell                a request of the program, which holds the lock for us
 *   children's shadows      inherit.c
 *   the program's end       and so ours; also when it is replaced by exec(2)
 */
#define _GNU_SOURCE
#include "client/tend.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/birth.h"
#include "client/budget.h"
#include "client/budget_set.h"
#include "client/confine.h"
#include "client/detach.h"
#include "client/handover.h"
#include "client/inherit.h"
#include "client/objects.h"
#include "client/poison.h"
#include "client/present.h"
#include "client/request.h"
#include "client/serve.h"
#include "client/view.h"
#include "core/control.h"
#include "core/fd.h"
#include "core/linger.h"
#include "core/slots.h"

#define RECONNECT_MS 200
/* While faults come one after the other, we look at everything else after so many. */
#define BATCHES 16
/* The longest time between two looks for an exec(2). */
#define EXEC_MAX_MS 2000
/* How long children that have just been forked may take to ask for what they inherit; and to be
 * heard of at all, before which it is not known whether they live. */
#define CHILDREN_MS 10000
#define UNKNOWN_MS 2000
/* Of those that take it themselves we do not hear. */
#define CHILDREN_LOOK_MS 2
/* So many looks that all find it elsewhere make it sure: the program may be mapping and unmapping
 * meanwhile, in other threads. */
#define EXEC_SURE 16
/* Fields of /proc/PID/statm before that. */
#define STATM_DATA 5
/* How long nothing may happen before an idle shadow takes over all the same. */
#define IDLE_MS 20

static uint64_t now_ms(void) { return clock_ns(CLOCK_MONOTONIC) / 1000000u; }

/* The program's end */

static bool has_ended(const struct attachment *att)
{
    struct pollfd end = {att->shadow.end_fd, POLLIN, 0};

    return end.fd >= 0 && poll(&end, 1, 0) > 0;
}

/* How much data the address space behind a /proc/PID/statm has, in pages; or -EIO. */
static int64_t read_data(int statm)
{
    char text[128];
    const ssize_t got = pread(statm, text, sizeof text - 1, 0);
    const char *at = text;
    int64_t pages = 0;

    text[got > 0 ? got : 0] = 0;
    for (unsigned field = 0; at && field < STATM_DATA; field++) {
        at = strchr(at, ' ');
        at += at != NULL;
    }
    if (!at || *at < '0' || *at > '9')
        return -EIO;
    for (; *at >= '0' && *at <= '9'; at++)
        pages = 10 * pages + *at - '0';
    return pages;
}

/* Whether nobody else has our address space: no thread of the program, and no other shadow of it.
 * With that flag alone unshare(2) does nothing else. */
static bool is_alone(void) { return !syscall(SYS_unshare, CLONE_VM); }

/* Whether the program has another address space than we have: there is more data in ours, and not
 * in its. kcmp(2) would say so, but not to a process with fewer rights. How much there was at an
 * earlier look says nothing: a program that runs itself again has as much. */
static bool is_elsewhere(const struct attachment *att)
{
    const int statm = att->shadow.size_fd;

    for (unsigned i = 0; i < EXEC_SURE; i++) {
        const int64_t before = read_data(statm);

        if (!before) /* its first thread has ended: others may go on */
            return is_alone();
        const bool more = birth_guard(att, false);
        const int64_t after = read_data(statm);

        if ((more && !birth_guard(att, true)) || !more || before < 0 || after < 0)
            return false;
        if (after != before) /* by ours; or by what it does itself, and we look again later */
            return false;
    }
    return true;
}

/* Whether the program was replaced by exec(2): from time to time we look. */
static bool replaced(struct attachment *att)
{
    struct shadow *shadow = &att->shadow;
    const uint64_t now = now_ms();

    if (now < shadow->look_ms)
        return false;
    shadow->rest_ms = shadow->rest_ms * 2 < EXEC_MAX_MS ? shadow->rest_ms * 2 : EXEC_MAX_MS;
    shadow->look_ms = now + shadow->rest_ms;
    return is_elsewhere(att);
}

/* Whether children are being born that need something of us. */
static bool has_children(const struct attachment *att)
{
    const struct births *births = att->shadow.births;

    return (int)(atomic_load(&births->forks) - atomic_load(&births->served)) > 0;
}

/* Gives it to them. */
static void see_off_children(struct attachment *att)
{
    const uint64_t start = atomic_load(&att->shadow.births->last_ms);
    struct pollfd post = {att->shadow.post_fd, POLLIN, 0};

    while (has_children(att) &&
           now_ms() < start + (inherit_asked_soon(att) ? CHILDREN_MS : UNKNOWN_MS)) {
        if (poll(&post, 1, CHILDREN_LOOK_MS) > 0)
            inherit_give(att);
    }
}

static _Noreturn void leave(struct attachment *att)
{
    const struct msg goodbye = {.op = MSG_DETACH, .seq = 1};

    if (att->ctl >= 0)
        control_send(att->ctl, &goodbye, NULL, 0, CONTROL_AT_ONCE);
    else if (att->shadow.idle) /* the server does not know of it */
        slot_release(&att->mm, att->slot, att->claim);
    see_off_children(att);
    for (;;)
        syscall(SYS_exit_group, 0);
}

/* Requests of the program */

int tend_take(struct attachment *att)
{
    const int sock = att->shadow.kit_fd;

    att->shadow.kit_fd = -1;
    return sock < 0 ? 0 : inherit_take(att, sock);
}

static int serve_request(struct attachment *att, const struct request *request)
{
    const int op = atomic_load(&request->op);
    const int err = op == REQUEST_END ? 0 : att->shadow.broken ? -EUCLEAN : tend_take(att);

    if (err)
        return err;
    switch (op) {
    case REQUEST_WATCH:
        return handover_end(att);
    case REQUEST_BUDGET:
        return budget_apply(att, request->arg, true);
    case REQUEST_ENTRIES:
        return present_catch_up(att, request->arg, request->end);
    default: /* nothing may come after this one: the program frees what we stand on */
        see_off_children(att);
        detach_goodbye(att);
        return 0;
    }
}

static void answer_program(struct attachment *att)
{
    const bool ends = atomic_load(&att->shadow.request.op) == REQUEST_END;

    request_answer(att, serve_request);
    if (ends)
        for (;;)
            syscall(SYS_exit_group, 0);
}

/* What can be done while somebody else has the lock. The program may have taken the bell's page
 * away again between our answer and its look; and it may be stopped in fork(2), while its child
 * waits. */
static void serve_waiting(struct attachment *att)
{
    struct pollfd ready[] = {{att->shadow.bell_fd, POLLIN, 0}, {att->shadow.post_fd, POLLIN, 0}};

    poll(ready, sizeof ready / sizeof *ready, 0);
    if (ready[0].revents || atomic_load(&att->shadow.request.op) != REQUEST_NONE)
        answer_program(att);
    if (ready[1].revents)
        inherit_give(att);
}

/* Takes the lock. The program may have it and wait for us, or have been killed with it. */
void tend_lock(struct attachment *att)
{
    while (!lock_try(&att->lock)) {
        serve_waiting(att);
        lock_wait(&att->lock);
        if (has_ended(att))
            leave(att);
    }
}

/* Faults */

static void answer_faults(struct attachment *att, const struct uffd_msg *msgs, ssize_t got)
{
    if (got < (ssize_t)sizeof *msgs)
        return;
    tend_lock(att);
    serve_faults(att, msgs, got);
    lock_release(&att->lock);
}

/* The region's files are no longer what they were, so nothing in them can be asked. */
static void refuse_faults(struct attachment *att, const struct uffd_msg *msgs, ssize_t got)
{
    for (ssize_t i = 0; i < got / (ssize_t)sizeof *msgs; i++) {
        const uint64_t addr = msgs[i].arg.pagefault.address & ~(PAGE_SIZE - 1);

        if (msgs[i].event != UFFD_EVENT_PAGEFAULT)
            continue;
        poison_nothing(att, (uint8_t *)addr);
        view_wake(att, attachment_offset(att, addr), attachment_offset(att, addr) + PAGE_SIZE);
    }
}

struct look {
    struct attachment *att;
    struct uffd_msg msgs[SERVE_EVENTS];
    ssize_t got;
};

static int look(void *arg)
{
    struct look *look = arg;

    look->got = read(look->att->uffd, look->msgs, sizeof look->msgs);
    return look->got > 0;
}

static void answer(struct look *look)
{
    if (look->att->shadow.broken)
        refuse_faults(look->att, look->msgs, look->got);
    else
        answer_faults(look->att, look->msgs, look->got);
}

static void answer_moved(struct attachment *att)
{
    struct look moved = {.att = att};

    moved.got = read(att->moved_uffd, moved.msgs, sizeof moved.msgs);
    answer(&moved);
}

/* The server */

static void lose_server(struct attachment *att)
{
    close(att->ctl);
    att->ctl = -1;
}

static void answer_server(struct attachment *att)
{
    if (serve_server(att))
        lose_server(att);
}

static void rejoin(struct attachment *att)
{
    const int sock = confine_connect(att->shadow.server);

    if (sock < 0)
        return;
    if (serve_rejoin(att, sock, att->shadow.end_fd)) {
        close(sock);
        return;
    }
    att->ctl = sock;
    serve_rejoined(att);
}

/* Waiting */

/* Of two times, ms from now; -1 is never. */
static int sooner(int a, int b) { return a < 0 || (b >= 0 && b < a) ? b : a; }

/* Does what is due, and returns how long nothing will be. */
static int tick(struct attachment *att)
{
    const uint64_t now = now_ms();
    int rest = att->shadow.look_ms > now ? (int)(att->shadow.look_ms - now) : 0;

    if (att->shadow.broken)
        return rest;
    if (att->objects_again_ms || att->budget.spans) {
        tend_lock(att);
        rest = sooner(rest, sooner(objects_tick(att), budget_tick(att)));
        lock_release(&att->lock);
    }
    if (att->ctl < 0) {
        tend_lock(att);
        rejoin(att);
        lock_release(&att->lock);
    }
    return att->ctl < 0 ? sooner(rest, RECONNECT_MS) : rest;
}

enum source { BELL, END, POST, CTL, MOVED, FAULTS, SOURCES };

/* Waits for anything. False: it is the end. */
static bool wait_for_any(struct attachment *att, struct look *faults, int rest)
{
    const struct shadow *shadow = &att->shadow;
    struct pollfd ready[SOURCES] = {
        [BELL] = {shadow->bell_fd, POLLIN, 0},  [END] = {shadow->end_fd, POLLIN, 0},
        [POST] = {shadow->post_fd, POLLIN, 0},  [CTL] = {att->ctl, POLLIN, 0},
        [MOVED] = {att->moved_uffd, POLLIN, 0}, [FAULTS] = {att->uffd, POLLIN, 0},
    };

    if (poll(ready, SOURCES, rest) > 0) {
        if (ready[BELL].revents)
            answer_program(att);
        if (ready[CTL].revents && !shadow->broken) {
            tend_lock(att);
            answer_server(att);
            lock_release(&att->lock);
        }
        if (ready[MOVED].revents && att->moved_uffd >= 0)
            answer_moved(att);
        if (ready[FAULTS].revents && look(faults))
            answer(faults);
        if (ready[POST].revents)
            inherit_give(att);
        if (ready[END].revents)
            return false;
    }
    return !replaced(att);
}

/* After a fault that came soon we stay awake for the next, as long as they keep coming soon. */
static bool faults_in_a_row(struct look *faults)
{
    struct shadow *shadow = &faults->att->shadow;

    if (!shadow->burst || ++shadow->batches % BATCHES == 0)
        return false;
    if (!look(faults)) {
        const uint64_t spent = clock_ns(CLOCK_THREAD_CPUTIME_ID);

        linger(look, faults);
        shadow->lingered_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - spent;
    }
    shadow->burst = faults->got > 0;
    return shadow->burst;
}

void tend_idle(struct attachment *att)
{
    const struct shadow *shadow = &att->shadow;
    const uint64_t end = now_ms() + IDLE_MS;
    struct pollfd ready[] = {
        {shadow->end_fd, POLLIN, 0},
        {shadow->bell_fd, POLLIN, 0},
        {shadow->post_fd, POLLIN, 0},
        {att->uffd, POLLIN, 0},
    };

    for (uint64_t now; (now = now_ms()) < end;) {
        const uint64_t due = shadow->look_ms < end ? shadow->look_ms : end;

        if (poll(ready, sizeof ready / sizeof *ready, due > now ? (int)(due - now) : 0) > 0) {
            if (!ready[0].revents || has_children(att))
                return;
            leave(att);
        }
        if (replaced(att))
            leave(att);
    }
}

_Noreturn void tend(struct attachment *att)
{
    struct look faults = {.att = att};

    /* After a SIGBUS we come back here, from the middle of anything. */
    if (__builtin_setjmp(att->shadow.escape)) {
        att->shadow.broken = true;
        if (att->ctl >= 0)
            lose_server(att);
        lock_abandon(&att->lock);
        answer_program(att);
    }
    att->shadow.tends = true;
    for (;;) {
        if (faults_in_a_row(&faults)) {
            answer(&faults);
            continue;
        }
        const int rest = att->shadow.burst ? 0 : tick(att);
        const uint64_t start = clock_ns(CLOCK_MONOTONIC);

        faults.got = 0;
        if (!wait_for_any(att, &faults, rest))
            leave(att);
        if (!att->shadow.burst)
            att->shadow.burst = faults.got > 0 && clock_ns(CLOCK_MONOTONIC) - start < LINGER_NS;
    }
}
