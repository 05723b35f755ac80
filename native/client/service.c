/*
 * service.c - the thread that waits for this process's faults and for the server.
 *
 * There is one thread for all attachments. It blocks every signal and never calls back
 * into the program. It can do without a server: faults need only shared memory. If the
 * server goes away, the thread knocks again until one answers.
 */
#define _GNU_SOURCE
#include "client/service.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "client/arrange.h"
#include "client/attachments.h"
#include "client/budget.h"
#include "client/clock.h"
#include "client/objects.h"
#include "client/poison.h"
#include "client/reader.h"
#include "client/resolve.h"
#include "client/view.h"
#include "client/watch.h"
#include "core/control.h"
#include "core/linger.h"

#define EVENTS 16
#define RECONNECT_MS 200
/* glibc takes thread-local storage from the stack, too; our own calls are shallow. */
#define STACK_BYTES (256 * 1024)

static void answer_faults(struct attachment *att, int uffd)
{
    struct uffd_msg msgs[EVENTS];
    ssize_t got = read(uffd, msgs, sizeof msgs);

    for (ssize_t i = 0; i < got / (ssize_t)sizeof *msgs; i++)
        if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
            resolve_fault(att, msgs[i].arg.pagefault.address, msgs[i].arg.pagefault.flags);
}

/* Does what the server asks for. 0 or -errno. */
static int obey(struct attachment *att, const struct msg *msg)
{
    switch (msg->op) {
    case MSG_REARM:
        poison_rearm(att, msg->arg[0], msg->arg[1]);
        return 0;
    case MSG_REVOKE:
        return resolve_revoke(att, msg->arg[0], msg->arg[1], msg->arg[2] & REVOKE_OBJECTS);
    default:
        return arrange(att, msg->arg[0], msg->arg[1], false);
    }
}

/* The descriptor that came with an answer to OBJECT, taken out of `fds`; or -errno. */
static int object_of(const struct msg *msg, bool lost, int fds[MSG_FDS])
{
    const int fd = fds[0];

    if (msg->result)
        return msg->result < 0 ? msg->result : -EPROTO;
    fds[0] = -1;
    return fd >= 0 ? fd : lost ? -EMFILE : -EPROTO;
}

static void answer_server(struct attachment *att)
{
    struct msg msg;
    int fds[MSG_FDS];
    int err = control_recv(att->ctl, &msg, fds, CONTROL_AT_ONCE);

    if (err == -ETIMEDOUT)
        return;
    const bool lost = err == -EMFILE; /* the rest of the message has come */
    err = lost ? 0 : err;
    if (!err && msg.op == MSG_REPLY && msg.seq >> 32 == SEQ_OBJECT >> 32)
        object_answer(att, (uint32_t)msg.seq, object_of(&msg, lost, fds));
    if (!err && msg.op == MSG_REPLY && msg.seq >> 32 == SEQ_FAULT >> 32)
        resolve_told(att, &msg);
    for (unsigned i = 0; !err && i < MSG_FDS; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (!err && (msg.op == MSG_REARM || msg.op == MSG_REVOKE || msg.op == MSG_ARRANGE)) {
        msg.result = obey(att, &msg);
        msg.op = MSG_REPLY;
        /* Faults wait for us: a server that reads no answers has to be joined anew. */
        err = control_send(att->ctl, &msg, NULL, 0, CONTROL_AT_ONCE);
    }
    if (err)
        watch_lose_server(att);
}

/* The server is back: show it the host mm, which proves the right to be its client. */
static void rejoin(struct attachment *att)
{
    struct msg msg = {.op = MSG_REJOIN, .arg = {att->slot, att->claim}};
    const int fds[] = {att->mm.fd, att->uffd};
    int sock = control_connect_path(att->path, CONTROL_AT_ONCE);

    if (sock < 0)
        return;
    if (att->reader)
        reader_introduce(att, &msg);
    if (control_send(sock, &msg, fds, 2, CONTROL_AT_ONCE) || watch_regain_server(att, sock)) {
        close(sock);
        return;
    }
    /* Threads that wait for an answer fault again, and ask this server. */
    objects_unask(att);
    reader_unask(att);
    view_wake(att, 0, att->length);
}

static void rejoin_all(void)
{
    for (unsigned i = 0; i < attachments_used; i++) {
        struct attachment *att = &attachments[i];

        pthread_mutex_lock(&att->lock);
        if (att->live && att->ctl < 0)
            rejoin(att);
        pthread_mutex_unlock(&att->lock);
    }
}

static int poll_events(void *events) { return watch_wait(events, EVENTS, 0); }

/* After an event that came soon we stay awake for the next, as long as they keep coming soon. */
static int wait_events(struct epoll_event *events, int rest_ms)
{
    static bool burst;
    const uint64_t start = clock_ns(CLOCK_MONOTONIC);
    int count = burst ? poll_events(events) : 0;

    if (!count && burst) {
        const uint64_t spent = clock_ns(CLOCK_THREAD_CPUTIME_ID);

        count = linger(poll_events, events);
        clock_add_lingered(clock_ns(CLOCK_THREAD_CPUTIME_ID) - spent);
    }
    burst = count;
    if (!count) {
        count = watch_wait(events, EVENTS, rest_ms);
        burst = clock_ns(CLOCK_MONOTONIC) - start < LINGER_NS;
    }
    return count;
}

static void handle_event(const struct epoll_event *event)
{
    enum watch_source source;
    struct attachment *att = watch_whose(event, &source);

    pthread_mutex_lock(&att->lock);
    /* A detach may have come between the wait and the lock. */
    if (att->live && source == WATCH_UFFD)
        answer_faults(att, att->uffd);
    else if (att->live && source == WATCH_MOVED && att->moved_uffd >= 0)
        answer_faults(att, att->moved_uffd);
    else if (att->live && source == WATCH_CTL && att->ctl >= 0)
        answer_server(att);
    pthread_mutex_unlock(&att->lock);
}

/* Of two times, ms from now; -1 is never. */
static int sooner(int a, int b) { return a < 0 || (b >= 0 && b < a) ? b : a; }

static void *serve(void *unused)
{
    struct epoll_event events[EVENTS];

    (void)unused;
    /* Not by pthread_setname_np() from outside, which opens /proc, in every child. */
    prctl(PR_SET_NAME, "mshare-service");
    for (;;) {
        int rest = sooner(budget_tick(), objects_tick());

        if (watch_away())
            rest = sooner(rest, RECONNECT_MS);
        int count = wait_events(events, rest);

        if (count < 0 && errno != EINTR)
            return NULL; /* the program closed our descriptor: there is nothing to wait for */
        for (int i = 0; i < count; i++)
            handle_event(&events[i]);
        if (watch_away())
            rejoin_all();
    }
}

int service_start(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    int err;

    if (watch_started())
        return 0;
    err = watch_start();
    if (err)
        return err;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&thread, &attr, serve, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (err)
        watch_forget();
    return -err;
}
