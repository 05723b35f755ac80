/* control.c - the client's end of a control connection; see control.h. */
#define _GNU_SOURCE
#include "core/control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "core/fd.h"
#include "core/hidden.h"
#include "msharefs.h"

/* Programs expect the lowest free number from open(2), so ours live up here. */
#define HIDDEN_FD_MIN 600

int control_hide_fd(int fd)
{
    int hidden;

    if (!hidden_any())
        return fd;
    hidden = fcntl(fd, F_DUPFD_CLOEXEC, HIDDEN_FD_MIN);
    if (hidden >= 0)
        close(fd);
    else if (fcntl(fd, F_SETFD, FD_CLOEXEC)) /* a low RLIMIT_NOFILE: it keeps its number */
        return -errno;
    else
        hidden = fd;
    hidden_add(hidden);
    return hidden;
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t control_deadline(int timeout_ms) { return now_ms() + timeout_ms; }

static int left_ms(int64_t deadline)
{
    const int64_t left = deadline == CONTROL_AT_ONCE ? 0 : deadline - now_ms();

    return left < 0 ? 0 : (int)left;
}

/* Waits until the socket is ready. A signal does not make it longer. */
static int wait_for(int sock, short events, int64_t deadline)
{
    struct pollfd ready = {sock, events, 0};
    int count;

    do
        count = poll(&ready, 1, left_ms(deadline));
    while (count < 0 && errno == EINTR);
    return count > 0 ? 0 : count ? -errno : -ETIMEDOUT;
}

/* The queue of a listener that does not accept may be full. poll(2) cannot wait for that on an
 * AF_UNIX socket, but connect(2) itself does, as long as a send may take. */
static int connect_until(int sock, const struct sockaddr_un *addr, int64_t deadline)
{
    for (;;) {
        const int left = left_ms(deadline);
        const struct timeval limit = {left / 1000, left ? left % 1000 * 1000 : 1}; /* 0: for ever */

        if (setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit))
            return -errno;
        if (!connect(sock, (const struct sockaddr *)addr, sizeof *addr))
            return 0;
        if (errno != EINTR && errno != EAGAIN)
            return -errno;
        if (!left_ms(deadline))
            return -ETIMEDOUT;
    }
}

int control_connect_path(const char *path, int64_t deadline)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int sock, err;

    if (strlen(path) >= sizeof addr.sun_path)
        return -ENAMETOOLONG;
    strcpy(addr.sun_path, path);
    sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (sock < 0)
        return -errno;
    err = connect_until(sock, &addr, deadline);
    if (err) {
        close(sock);
        return err;
    }
    return control_hide_fd(sock);
}

int control_send(int sock, const struct msg *msg, const int *fds, unsigned count, int64_t deadline)
{
    char space[CMSG_SPACE(MSG_FDS * sizeof(int))] = {0};
    struct iovec part = {(void *)msg, sizeof *msg};
    struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1};
    int err = 0;

    if (count) {
        head.msg_control = space;
        head.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&head);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, count * sizeof(int));
    }
    while (!err) {
        if (sendmsg(sock, &head, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
            return 0;
        if (errno == EAGAIN)
            err = left_ms(deadline) ? wait_for(sock, POLLOUT, deadline) : -ETIMEDOUT;
        else if (errno != EINTR)
            err = -errno;
    }
    return err;
}

static void close_fds(int fds[MSG_FDS])
{
    for (unsigned i = 0; i < MSG_FDS; i++) {
        fd_close(fds[i]);
        fds[i] = -1;
    }
}

/* The descriptors that came with a message. Those that do not fit into `fds` are open by now, too,
 * since the kernel fills the buffer up to its alignment: they are closed. */
static int take_fds(struct msghdr *head, int fds[MSG_FDS])
{
    unsigned count = 0;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(head); cmsg; cmsg = CMSG_NXTHDR(head, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = CMSG_LEN(0); at + sizeof(int) <= cmsg->cmsg_len; at += sizeof(int)) {
            int fd;

            memcpy(&fd, (char *)cmsg + at, sizeof fd);
            if (count < MSG_FDS)
                fds[count] = fd;
            else
                close(fd);
            count++;
        }
    }
    return count > MSG_FDS ? -EPROTO : head->msg_flags & MSG_CTRUNC ? -EMFILE : 0;
}

int control_recv(int sock, struct msg *msg, int fds[MSG_FDS], int64_t deadline)
{
    char space[CMSG_SPACE(MSG_FDS * sizeof(int))];
    struct iovec part = {msg, sizeof *msg};
    struct msghdr head = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    ssize_t got;
    int err;

    for (unsigned i = 0; i < MSG_FDS; i++)
        fds[i] = -1;
    do {
        err = wait_for(sock, POLLIN, deadline);
        if (err)
            return err;
        got = recvmsg(sock, &head, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    } while (got < 0 && (errno == EINTR || errno == EAGAIN));
    if (got < 0)
        return -errno;

    err = take_fds(&head, fds);
    if (got != sizeof *msg)
        err = got ? -EPROTO : -EPIPE;
    if (err)
        close_fds(fds);
    return err;
}

static int call_until(int sock, struct msg *msg, const int *send_fds, unsigned count,
                      int recv_fds[MSG_FDS], int64_t deadline)
{
    int spare[MSG_FDS], *fds = recv_fds ? recv_fds : spare;
    int err = control_send(sock, msg, send_fds, count, deadline);

    if (!err)
        err = control_recv(sock, msg, fds, deadline);
    if (err)
        return err;
    err = msg->op == MSG_REPLY ? msg->result : -EPROTO;
    if (err || !recv_fds)
        close_fds(fds);
    return err;
}

int control_call(int sock, struct msg *msg, const int *send_fds, unsigned count,
                 int recv_fds[MSG_FDS])
{
    return call_until(sock, msg, send_fds, count, recv_fds, control_deadline(CONTROL_TIMEOUT_MS));
}

static int send_token(const struct mshare_connect *ticket)
{
    struct msg msg = {.op = MSG_TOKEN};
    const int64_t deadline = control_deadline(CONTROL_TIMEOUT_MS);
    char path[sizeof ticket->path];

    memcpy(path, ticket->path, sizeof path);
    path[sizeof path - 1] = 0;
    int sock = control_connect_path(path, deadline);
    if (sock < 0)
        return sock;
    memcpy(msg.text, ticket->token, sizeof ticket->token);
    int err = call_until(sock, &msg, NULL, 0, NULL, deadline);
    if (err) {
        close(sock);
        return err;
    }
    return sock;
}

int control_begin(struct control_ends *ends)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -errno;
    *ends = (struct control_ends){pair[0], pair[1], {.fd = pair[1]}};
    return 0;
}

int control_ask(int fd, struct control_ends *ends)
{
    int err;

    do /* a signal may come before the server has read the question */
        err = ioctl(fd, MSHAREFS_CONNECT, &ends->ticket) ? -errno : 0;
    while (err == -EINTR);
    return err;
}

int control_finish(struct control_ends *ends, int err)
{
    close(ends->theirs);
    if (!err && !(ends->ticket.flags & MSHARE_CONNECT_TOKEN))
        return control_hide_fd(ends->ours);
    close(ends->ours);
    return err ? err : send_token(&ends->ticket);
}

int control_connect(int fd)
{
    struct control_ends ends;
    int err = control_begin(&ends);

    return err ? err : control_finish(&ends, control_ask(fd, &ends));
}
