/*
 * service.c - the thread that waits for this process's faults and for the server, where no shadow
 * does (mode.h).
 *
 * There is one thread for all attachments. It blocks every signal and never calls back
 * into the program. It can do without a server: faults need only shared memory. If the
 * server goes away, the thread knocks again until one answers.
 */
#define _GNU_SOURCE
#include "client/service.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "client/attachments.h"
#include "client/budget.h"
#include "client/clock.h"
#include "client/objects.h"
#include "client/serve.h"
#include "client/watch.h"
#include "core/control.h"
#include "core/linger.h"

#define EVENTS 16
#define RECONNECT_MS 200
/* glibc takes thread-local storage from the stack, too; our own calls are shallow. */
#define STACK_BYTES (256 * 1024)

static void answer_faults(struct attachment *att, int uffd)
{
    struct uffd_msg msgs[SERVE_EVENTS];

    serve_faults(att, msgs, read(uffd, msgs, sizeof msgs));
}

static void answer_server(struct attachment *att)
{
    if (serve_server(att))
        watch_lose_server(att);
}

static void rejoin(struct attachment *att)
{
    int sock = control_connect_path(att->path, CONTROL_AT_ONCE);

    if (sock < 0)
        return;
    if (serve_rejoin(att, sock, -1) || watch_regain_server(att, sock))
        close(sock);
    else
        serve_rejoined(att);
}

static void rejoin_all(void)
{
    for (unsigned i = 0; i < attachments_used; i++) {
        struct attachment *att = &attachments[i];

        attachment_lock(att);
        if (att->live && att->ctl < 0)
            rejoin(att);
        attachment_unlock(att);
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

    attachment_lock(att);
    /* A detach may have come between the wait and the lock. */
    if (att->live && source == WATCH_UFFD)
        answer_faults(att, att->uffd);
    else if (att->live && source == WATCH_MOVED && att->moved_uffd >= 0)
        answer_faults(att, att->moved_uffd);
    else if (att->live && source == WATCH_CTL && att->ctl >= 0)
        answer_server(att);
    attachment_unlock(att);
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
        int rest = sooner(budget_tick_all(), objects_tick_all());

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
