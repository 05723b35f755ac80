/* inner.c - ordinary calls on a window that are calls on its region; see inner.h. */
#define _GNU_SOURCE
#include "preload/inner.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/attachments.h"
#include "client/calls.h"
#include "client/mode.h"
#include "core/control.h"
#include "core/fd.h"
#include "msharefs.h"
#include "preload/sys.h"

/* After a restart of the server the attachment has no connection for a moment. */
#define AGAIN_MS 2000
#define AGAIN_NS 10000000

static bool covers(struct range range, const struct attachment *att)
{
    return range.start <= (uintptr_t)att->base && attachment_end(att) <= range.end;
}

static bool lies_in(struct range range, const struct attachment *att)
{
    return (uintptr_t)att->base <= range.start && range.end <= attachment_end(att);
}

static void name(struct inner *inner, const struct attachment *att, struct range range)
{
    inner->offset = attachment_offset(att, range.start);
    inner->size = range.end - range.start;
    inner->region = att->mm.header->region;
    inner->slot = att->reader ? 0 : att->slot; /* a reader's own is not the server's */
    inner->claim = att->reader ? 0 : att->claim;
    inner->base = (uintptr_t)att->base;
    memcpy(inner->path, att->path, sizeof inner->path);
}

static int find(struct range range, bool takes, struct inner *inner)
{
    struct attachment *att;
    int found = 0;

    attachments_lock();
    for (uint64_t at = range.start; !found && (att = attachment_over(at, range.end));
         at = attachment_end(att)) {
        if (!att->inner || (takes && covers(range, att)))
            continue;
        found = lies_in(range, att) ? 1 : -ENOMEM;
        if (found > 0)
            name(inner, att, range);
    }
    attachments_unlock();
    return found;
}

int inner_of(struct range range, struct inner *inner) { return find(range, false, inner); }

int inner_part_of(struct range range, struct inner *inner) { return find(range, true, inner); }

static void close_all(int fds[MSG_FDS])
{
    for (unsigned i = 0; i < MSG_FDS; i++)
        fd_close(fds[i]);
}

/* A connection that has asked for the rights of the attachment; -ETIMEDOUT: nobody takes it. */
static int open_window(const struct inner *inner, int64_t deadline)
{
    const struct msg window = {.op = MSG_WINDOW,
                               .arg = {inner->region, inner->slot, inner->claim, inner->base}};
    const int sock = control_connect_path(inner->path, deadline);
    int err;

    if (sock < 0)
        return sock == -ETIMEDOUT ? sock : -ENOTCONN;
    err = control_send(sock, &window, NULL, 0, deadline);
    if (!err)
        return sock;
    fd_close(sock);
    return err;
}

/* Whether the server does anything, be it that it refuses. */
static bool answers(const struct inner *inner)
{
    const int64_t deadline = control_deadline(CONTROL_TIMEOUT_MS);
    const int sock = open_window(inner, deadline);
    struct msg msg;
    int fds[MSG_FDS], err;

    if (sock < 0)
        return false;
    err = control_recv(sock, &msg, fds, deadline);
    if (!err)
        close_all(fds);
    fd_close(sock);
    return err != -ETIMEDOUT;
}

/* Says, to who wants to know, why a call on a window fails. */
static int tell_timeout(int err)
{
    if (err == -ETIMEDOUT)
        mode_tell("its server does not answer: a call on a window fails, and may still be done",
                  err);
    return err;
}

static int result(const struct msg *msg) { return msg->op == MSG_REPLY ? msg->result : -EPROTO; }

/* The answer to a request. It may take long, because a change may have to wait for others; but not
 * if the server answers nothing else meanwhile: -ETIMEDOUT. */
static int hear(const struct inner *inner, int sock, struct msg *msg, int fds[MSG_FDS])
{
    int err;

    do
        err = control_recv(sock, msg, fds, control_deadline(CONTROL_TIMEOUT_MS));
    while (err == -ETIMEDOUT && answers(inner));
    return err ? tell_timeout(err) : result(msg);
}

/* Asks once, by a connection of its own. *out: a descriptor with what was told, or -1. */
static int ask(const struct inner *inner, struct msg *msg, int object_fd, int *out)
{
    const int64_t deadline = control_deadline(CONTROL_TIMEOUT_MS);
    const int sock = open_window(inner, deadline);
    int fds[MSG_FDS], err;
    struct msg answer;

    *out = -1;
    if (sock < 0)
        return tell_timeout(sock);
    err = control_send(sock, msg, &object_fd, object_fd >= 0, deadline);
    if (!err)
        err = control_recv(sock, &answer, fds, deadline);
    if (err) {
        tell_timeout(err);
    } else {
        close_all(fds);
        err = result(&answer);
    }
    if (!err) {
        err = hear(inner, sock, msg, fds);
        *out = fds[0];
        fds[0] = -1;
        close_all(fds);
    }
    fd_close(sock);
    return err;
}

static int ask_until_connected(const struct inner *inner, struct msg *msg, int object_fd, int *out)
{
    const int64_t deadline = control_deadline(AGAIN_MS);
    const struct timespec rest = {0, AGAIN_NS};
    struct msg question;
    int err, held;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &held);
    for (;;) {
        question = *msg;
        err = ask(inner, &question, object_fd, out);
        if (err != -EAGAIN || control_deadline(0) >= deadline)
            break;
        clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, NULL);
    }
    pthread_setcancelstate(held, NULL);
    return err;
}

/* errno is the program's: it changes only with an error of the call itself. */
static int tell(const struct inner *inner, struct msg *msg, int object_fd)
{
    const int saved = errno;
    int out;
    const int err = ask_until_connected(inner, msg, object_fd, &out);

    fd_close(out);
    errno = saved;
    return err;
}

int inner_map(const struct inner *inner, const struct mmap_call *call)
{
    struct msg msg = {.op = MSG_MAP,
                      .arg = {inner->offset, call->length, (uint32_t)call->prot,
                              (uint32_t)call->flags, (uint64_t)call->offset}};
    const int type = call->flags & MAP_TYPE;

    if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
        return -EINVAL;
    if (call->flags & MAP_ANONYMOUS)
        return tell(inner, &msg, -1);
    return call->fd < 0 ? -EBADF : tell(inner, &msg, call->fd);
}

int inner_unmap(const struct inner *inner)
{
    struct msg msg = {.op = MSG_UNMAP, .arg = {inner->offset, inner->size}};

    return tell(inner, &msg, -1);
}

int inner_protect(const struct inner *inner, int prot)
{
    struct msg msg = {.op = MSG_PROTECT, .arg = {inner->offset, inner->size, (uint32_t)prot, 0}};

    return tell(inner, &msg, -1);
}

/* A verb that is an ioctl, with the argument that it has there. */
static struct msg verb(unsigned long command, const void *arg, size_t size)
{
    struct msg msg = {.op = MSG_VERB, .arg = {command}};

    memcpy(msg.text, arg, size);
    return msg;
}

int inner_advise(const struct inner *inner, int advice)
{
    const struct mshare_advise arg = {inner->offset, inner->size, (uint32_t)advice, 0};
    struct msg msg = verb(MSHAREFS_ADVISE, &arg, sizeof arg);

    return tell(inner, &msg, -1);
}

int inner_verb(const struct inner *inner, unsigned long command, unsigned flags)
{
    const struct mshare_range arg = {inner->offset, inner->size, flags, 0};
    struct msg msg = verb(command, &arg, sizeof arg);

    return tell(inner, &msg, -1);
}

_Static_assert(sizeof(struct mshare_mbind) <= MSG_TEXT, "the argument fits a message");

int inner_mbind(const struct inner *inner, int mode, const unsigned long *nodes,
                unsigned long max_node, unsigned flags)
{
    struct mshare_mbind arg = {.region_offset = inner->offset,
                               .size = inner->size,
                               .mode = (uint32_t)mode,
                               .flags = flags};
    int err = calls_set_nodes(&arg, nodes, max_node);

    if (err)
        return err;
    struct msg msg = verb(MSHAREFS_MBIND, &arg, sizeof arg);
    return tell(inner, &msg, -1);
}

int inner_query(const struct inner *inner, unsigned char *vec)
{
    const uint64_t arg[] = {inner->offset, inner->size}; /* the rest of the struct is for output */
    const size_t pages = (inner->size + PAGE_SIZE - 1) / PAGE_SIZE;
    struct msg msg = verb(MSHAREFS_QUERY, arg, sizeof arg);
    const int saved = errno;
    int out;
    int err = ask_until_connected(inner, &msg, -1, &out);

    if (!err && pread(out, vec, pages, offsetof(struct mshare_query, vec)) != (ssize_t)pages)
        err = -EPROTO;
    fd_close(out);
    errno = saved;
    return err;
}
