/*
 * inherit.c - from shadow to shadow; see inherit.h.
 *
 *   child's shadow      makes a pair of sockets
 *     --> parent's      datagram: the cookie, which is in both memories; one of the pair
 *     <-- parent's      over the pair: .mm, .mem, the device, its connection to the server,
 *                       descriptors of objects
 *
 * Where the kernel permits it, an idle one (life.c) takes all but the last out of its parent's by
 * pidfd_getfd(2), which wakes nobody.
 *
 * The address is an abstract one, so that it needs no file system; whoever is in the same
 * network namespace can send something there, and without the cookie it is thrown away.
 */
#define _GNU_SOURCE
#include "client/inherit.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/fd.h"
#include "core/linger.h"

/* A child waits for its parent's shadow that long. */
#define KIT_MS 10000
#define OWN_FDS 4 /* .mm, .mem, the device, the connection */
#define KIT_FDS (OWN_FDS + OBJECTS_MAX)

struct kit {
    bool device, server;
    uint32_t objects;
    struct {
        uint32_t number, writing;
    } object[OBJECTS_MAX];
};

union control_space {
    struct cmsghdr head; /* for its alignment */
    char bytes[CMSG_SPACE(KIT_FDS * sizeof(int))];
};

static bool send_fds(int sock, const struct sockaddr_un *to, socklen_t size, const void *data,
                     size_t bytes, const int *fds, unsigned count, int flags)
{
    union control_space space = {0};
    struct iovec part = {(void *)data, bytes};
    struct msghdr head = {
        .msg_name = (void *)to,
        .msg_namelen = size,
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &space,
        .msg_controllen = CMSG_SPACE(count * sizeof(int)),
    };
    struct cmsghdr *rights = CMSG_FIRSTHDR(&head);

    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(rights), fds, count * sizeof(int));
    return sendmsg(sock, &head, MSG_NOSIGNAL | flags) == (ssize_t)bytes;
}

/* How many descriptors came, in `fds`; -1: not such a message, and they are closed. */
static int receive_fds(int sock, void *data, size_t bytes, int fds[KIT_FDS])
{
    union control_space space;
    struct iovec part = {data, bytes};
    struct msghdr head = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &space, .msg_controllen = sizeof space};
    const ssize_t got = recvmsg(sock, &head, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    const struct cmsghdr *rights = got < 0 ? NULL : CMSG_FIRSTHDR(&head);
    int count = 0;

    if (rights && rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS) {
        count = (int)((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(rights), (size_t)count * sizeof(int));
    }
    if (got == (ssize_t)bytes && !(head.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        return count;
    while (count)
        close(fds[--count]);
    return -1;
}

void inherit_listen(struct attachment *att)
{
    struct shadow *shadow = &att->shadow;
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    socklen_t size = sizeof addr;
    const int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    memset(shadow->post, 0, sizeof shadow->post);
    shadow->post_fd = sock;
    if (sock < 0)
        return;
    /* The kernel chooses a free name: five digits. Nothing can be sent from this socket, which
     * has the rights of whoever made it. */
    if (bind(sock, (struct sockaddr *)&addr, sizeof addr.sun_family) || shutdown(sock, SHUT_WR) ||
        getsockname(sock, (struct sockaddr *)&addr, &size) ||
        size <= offsetof(struct sockaddr_un, sun_path) + 1 ||
        size - offsetof(struct sockaddr_un, sun_path) - 1 >= sizeof shadow->post) {
        close(sock);
        shadow->post_fd = -1;
        return;
    }
    memcpy(shadow->post, addr.sun_path + 1, size - offsetof(struct sockaddr_un, sun_path) - 1);
}

static void give(struct attachment *att, int child)
{
    struct kit kit = {.device = att->dev_fd >= 0, .server = att->ctl >= 0};
    int fds[KIT_FDS] = {att->mm.fd, att->mem_fd};
    unsigned count = 2;

    if (kit.device)
        fds[count++] = att->dev_fd;
    if (kit.server)
        fds[count++] = att->ctl;
    for (unsigned i = 0; i < OBJECTS_MAX; i++)
        if (att->objects[i].state == OBJECT_HELD) {
            kit.object[kit.objects].number = att->objects[i].number;
            kit.object[kit.objects++].writing = att->objects[i].writing;
            fds[count++] = att->objects[i].fd;
        }
    send_fds(child, NULL, 0, &kit, sizeof kit, fds, count, MSG_DONTWAIT);
}

void inherit_give(struct attachment *att)
{
    uint8_t cookie[SHADOW_COOKIE];
    int fds[KIT_FDS];
    int count = receive_fds(att->shadow.post_fd, cookie, sizeof cookie, fds);

    if (count == 1 && !memcmp(cookie, att->shadow.cookie, sizeof cookie)) {
        give(att, fds[0]);
        inherit_done(att->shadow.births);
    }
    while (count > 0)
        close(fds[--count]);
}

int inherit_ask(const struct attachment *att)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    const size_t name = strnlen(att->shadow.post, sizeof att->shadow.post);
    const struct timeval limit = {.tv_sec = KIT_MS / 1000};
    int pair[2], sock, err = 0;

    if (!name)
        return -ENOTCONN;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -errno;
    memcpy(to.sun_path + 1, att->shadow.post, name);
    sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) ||
        !send_fds(sock, &to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + name),
                  att->shadow.cookie, sizeof att->shadow.cookie, &pair[1], 1, 0))
        err = -errno;
    fd_close(sock);
    close(pair[1]);
    if (err)
        close(pair[0]);
    return err ? err : pair[0];
}

void inherit_expect(struct attachment *att)
{
    struct births *births = att->shadow.births;

    att->shadow.parent = (struct parent){
        .pid = atomic_load(&att->shadow.alive) ? att->shadow.pid : 0,
        .mm_fd = att->mm.fd,
        .mem_fd = att->mem_fd,
        .dev_fd = att->dev_fd,
        .ctl = att->ctl,
        .births = births,
    };
    atomic_store(&births->last_ms, clock_ns(CLOCK_MONOTONIC) / 1000000u);
    atomic_fetch_add(&births->forks, 1);
}

void inherit_begin(struct attachment *att)
{
    struct family *family = att->shadow.family;
    struct parent *parent = &att->shadow.parent;

    att->shadow.births = &family->births[++family->next % FAMILY_MAX];
    parent->name = NULL;
    for (unsigned i = 0; !parent->name && i < BORN_MAX; i++) {
        uint32_t nobody = 0;

        if (atomic_compare_exchange_strong(&parent->births->now[i], &nobody, (uint32_t)gettid()))
            parent->name = &parent->births->now[i];
    }
}

void inherit_end(struct attachment *att)
{
    if (att->shadow.parent.name)
        atomic_store(att->shadow.parent.name, 0);
    att->shadow.parent.name = NULL;
}

/* Whether the thread that `name` names lives. A futex of priority inheritance has the number of its
 * owner in it, and who tries to take it hears from the kernel when that is dead: nothing else tells
 * a shadow so, which may open no pidfd. */
static bool lives(_Atomic uint32_t *name)
{
    uint32_t seen = atomic_load(name);

    if (!seen)
        return false;
    if (!syscall(SYS_futex, name, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0)) {
        atomic_store(name, 0); /* it was done just now */
        return false;
    }
    if (errno != ESRCH)
        return true;
    atomic_compare_exchange_strong(name, &seen, 0);
    return false;
}

bool inherit_asked_soon(const struct attachment *att)
{
    bool any = false;

    for (unsigned i = 0; i < BORN_MAX; i++)
        any |= lives(&att->shadow.births->now[i]);
    return any;
}

void inherit_done(struct births *births) { atomic_fetch_add(&births->served, 1); }

int inherit_fetch(struct attachment *att)
{
    const struct parent *parent = &att->shadow.parent;
    const struct {
        int from, *to;
    } fds[] = {
        {parent->mm_fd, &att->mm.fd},
        {parent->mem_fd, &att->mem_fd},
        {parent->dev_fd, &att->dev_fd},
        {parent->ctl, &att->shadow.parent_ctl},
    };
    /* No number that means another process here: a child in a namespace of its own has no parent.
     * */
    const bool known = parent->pid > 0 && parent->mm_fd >= 0 && getppid();
    const int pidfd = known ? (int)syscall(SYS_pidfd_open, parent->pid, 0) : -1;
    int err = pidfd < 0 ? -ESRCH : 0;

    for (unsigned i = 0; !err && i < sizeof fds / sizeof *fds; i++) {
        *fds[i].to = fds[i].from < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, fds[i].from, 0);
        if (fds[i].from >= 0 && *fds[i].to < 0)
            err = -errno;
    }
    fd_close(pidfd);
    for (unsigned i = 0; err && i < sizeof fds / sizeof *fds; i++) {
        fd_close(*fds[i].to);
        *fds[i].to = -1;
    }
    return err;
}

static void take_objects(struct attachment *att, const struct kit *kit, const int *fds)
{
    for (unsigned i = 0; i < kit->objects; i++)
        att->objects[i] = (struct object){
            .state = OBJECT_HELD,
            .number = kit->object[i].number,
            .writing = kit->object[i].writing,
            .fd = fds[i],
        };
}

int inherit_take(struct attachment *att, int sock)
{
    struct kit kit;
    int fds[KIT_FDS], own = 2, count = -1;

    struct pollfd ready = {sock, POLLIN, 0};
    if (poll(&ready, 1, KIT_MS) > 0)
        count = receive_fds(sock, &kit, sizeof kit, fds);
    close(sock);
    if (count < 2 || kit.objects > OBJECTS_MAX ||
        (unsigned)count != 2u + kit.device + kit.server + kit.objects)
        return -EPROTO; /* whatever came ends with us */
    att->mm.fd = fds[0];
    att->mem_fd = fds[1];
    att->dev_fd = kit.device ? fds[own++] : -1;
    att->shadow.parent_ctl = kit.server ? fds[own++] : -1;
    take_objects(att, &kit, fds + own);
    return 0;
}
