/*
 * main.c - mshare-charger: makes pages of a file when the server asks, and does nothing else.
 *
 * Linux charges a page of a file to the memory cgroup of whoever makes it. The server starts one of
 * these for an owner's memory cgroup and moves it there (-o charge=owner; server/charging.py).
 * It runs among processes that are not the server's, so it keeps no rights, and each request brings
 * the file that it is for.
 *
 *   standard input    a SOCK_SEQPACKET of the server: struct charge_ask and a descriptor,
 *                     answered by struct charge_told. Its end is ours.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct charge_ask {
    uint64_t seq, offset, size;
};

struct charge_told {
    uint64_t seq;
    int64_t result; /* 0 or -errno */
};

/* The descriptor that came with a message; -1: there is none. */
static int descriptor_of(struct msghdr *head)
{
    const struct cmsghdr *control = CMSG_FIRSTHDR(head);
    int fd = -1;

    if (control && control->cmsg_level == SOL_SOCKET && control->cmsg_type == SCM_RIGHTS &&
        control->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(control), sizeof fd);
    return fd;
}

/* The next request. False: the server has gone. */
static int next_request(struct charge_ask *ask, int *fd)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof *fd)];
    struct iovec part = {ask, sizeof *ask};
    struct msghdr head = {.msg_iov = &part,
                          .msg_iovlen = 1,
                          .msg_control = control,
                          .msg_controllen = sizeof control};
    ssize_t got;

    do
        got = recvmsg(STDIN_FILENO, &head, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    *fd = got > 0 ? descriptor_of(&head) : -1;
    return got == (ssize_t)sizeof *ask;
}

static int64_t make_pages(int fd, const struct charge_ask *ask)
{
    int err;

    do
        err = fallocate(fd, 0, (off_t)ask->offset, (off_t)ask->size) ? errno : 0;
    while (err == EINTR);
    return -err;
}

static int give_up_rights(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

    prctl(PR_SET_NAME, "mshare-charger", 0ul, 0ul, 0ul);
    if (prctl(PR_SET_DUMPABLE, 0ul, 0ul, 0ul, 0ul) ||
        prctl(PR_SET_NO_NEW_PRIVS, 1ul, 0ul, 0ul, 0ul) || syscall(SYS_capset, &head, none))
        return -errno;
    return 0;
}

int main(void)
{
    struct charge_ask ask;
    int fd;

    if (give_up_rights())
        return 1;
    while (next_request(&ask, &fd)) {
        const struct charge_told told = {ask.seq, fd < 0 ? -EBADF : make_pages(fd, &ask)};

        if (fd >= 0)
            close(fd);
        if (send(STDIN_FILENO, &told, sizeof told, MSG_NOSIGNAL) < 0)
            break;
    }
    return 0;
}
