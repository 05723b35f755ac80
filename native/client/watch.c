/* watch.c - the descriptors that the service thread waits for; see watch.h. */
#define _GNU_SOURCE
#include "client/watch.h"

#include <errno.h>
#include <unistd.h>

#include "client/attachments.h"
#include "core/control.h"

static int epoll = -1;        /* written with the table's lock held */
static _Atomic unsigned away; /* attachments whose server is gone */

int watch_start(void)
{
    const int made = epoll_create1(EPOLL_CLOEXEC);

    if (made < 0)
        return -errno;
    epoll = control_hide_fd(made);
    return epoll < 0 ? epoll : 0;
}

bool watch_started(void) { return epoll >= 0; }

void watch_forget(void)
{
    if (epoll >= 0)
        close(epoll);
    epoll = -1;
    away = 0;
}

int watch_wait(struct epoll_event *events, int count, int timeout_ms)
{
    return epoll_wait(epoll, events, count, timeout_ms);
}

static uint64_t tag(const struct attachment *att, enum watch_source source)
{
    return (uint64_t)(att - attachments) << 2 | source;
}

struct attachment *watch_whose(const struct epoll_event *event, enum watch_source *source)
{
    *source = event->data.u64 & 3;
    return &attachments[event->data.u64 >> 2];
}

static int add(const struct attachment *att, int fd, enum watch_source source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = tag(att, source)};

    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static void take_out(int fd) { epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL); }

int watch_add(struct attachment *att)
{
    int err = add(att, att->uffd, WATCH_UFFD);

    if (err)
        return err;
    if (att->ctl < 0) {
        away++;
        return 0;
    }
    return add(att, att->ctl, WATCH_CTL);
}

int watch_add_moved(struct attachment *att) { return add(att, att->moved_uffd, WATCH_MOVED); }

void watch_remove(struct attachment *att)
{
    take_out(att->uffd);
    if (att->moved_uffd >= 0)
        take_out(att->moved_uffd);
    if (att->ctl < 0)
        away--;
    else
        take_out(att->ctl);
}

void watch_lose_server(struct attachment *att)
{
    take_out(att->ctl);
    close(att->ctl);
    att->ctl = -1;
    away++;
}

int watch_regain_server(struct attachment *att, int sock)
{
    int err = add(att, sock, WATCH_CTL);

    if (err)
        return err;
    att->ctl = sock;
    away--;
    return 0;
}

unsigned watch_away(void) { return away; }

bool watch_is(int fd) { return fd == epoll; }

int watch_move(void)
{
    const int moved = control_hide_fd(epoll);

    if (moved < 0)
        return moved;
    epoll = moved;
    return 0;
}

int watch_move_fd(struct attachment *att, int *fd, enum watch_source source)
{
    int moved;

    /* epoll(7) knows a descriptor by its number, too. */
    take_out(*fd);
    moved = control_hide_fd(*fd);
    if (moved < 0)
        return moved;
    *fd = moved;
    return add(att, moved, source);
}
