/*
 * attach.c - attach, detach, fork.
 *
 *   attach   server: .mm, .mem, userfaultfd device
 *            window of .mem, a slot, a userfaultfd over the window
 *            server: READY with the userfaultfd; the service thread takes over
 *   fork     the child's mapping has lost its registration: the child makes a
 *            slot, a userfaultfd and a connection of its own before fork() returns
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "attachment.h"
#include "control.h"
#include "msharefs.h"
#include "window.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

struct attachment attachments[ATTACHMENTS_MAX];
static pthread_mutex_t attach_lock = PTHREAD_MUTEX_INITIALIZER;

/* Field 22 of /proc/self/stat, in clock ticks: tells a process from a later one
 * with the same number. No stdio: also runs in the child of a fork. */
static uint64_t own_start_time(void)
{
    char text[1024], *at;
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (fd >= 0)
        close(fd);
    if (got <= 0)
        return 0;
    text[got] = 0;
    at = strrchr(text, ')'); /* the name may hold anything, also this */
    for (unsigned field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

int attach_register(const struct attachment *att, uint8_t *start, uint64_t size)
{
    struct uffdio_register range = {
        .range = {(uintptr_t)start, size},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
                UFFDIO_REGISTER_MODE_WP,
    };

    return ioctl(att->uffd, UFFDIO_REGISTER, &range) ? -errno : 0;
}

/* Maps the window over whatever reserved it and puts it under our watch. */
static int map_window(struct attachment *att)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
                    UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    };
    void *got = mmap(att->base, att->mm.size, att->prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
                     att->mem_fd, 0);

    if (got == MAP_FAILED)
        return -errno;
    /* A core dump would walk the whole window page by page. */
    madvise(att->base, att->mm.size, MADV_DONTDUMP);
    att->uffd = ioctl(att->dev_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (att->uffd < 0)
        return -errno;
    att->uffd = control_hide_fd(att->uffd);
    if (ioctl(att->uffd, UFFDIO_API, &api))
        return errno == EINVAL ? -ENOSYS : -errno;
    return attach_register(att, att->base, att->mm.size);
}

static int claim(struct attachment *att)
{
    int slot = slot_claim(&att->mm, (uint32_t)getpid(), own_start_time());

    if (slot < 0)
        return slot;
    att->slot = (unsigned)slot;
    att->mm.slots[slot].base = (uintptr_t)att->base;
    att->mm.slots[slot].prot = (uint32_t)att->prot;
    return 0;
}

static void close_if(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* Undoes a half-made or whole attachment; the window goes first, so that no
 * thread of ours can be needed any more. */
static void drop(struct attachment *att, bool mapped, bool claimed)
{
    if (mapped)
        munmap(att->base, att->mm.size);
    if (claimed)
        slot_reap(&att->mm, att->slot);
    close_if(att->uffd);
    close_if(att->ctl);
    close_if(att->mem_fd);
    close_if(att->dev_fd);
    free(att->linked);
    att->linked = NULL;
    mm_close(&att->mm);
    att->live = false;
}

/* Asks for the region's objects. */
static int fetch(struct attachment *att, int fd)
{
    struct msg msg = {.op = MSG_ATTACH, .arg = {(uint64_t)att->prot}};
    int fds[MSG_FDS] = {-1, -1, -1};
    int err;

    att->ctl = control_connect(fd);
    if (att->ctl < 0)
        return att->ctl;
    err = control_call(att->ctl, &msg, NULL, 0, fds);
    att->mem_fd = fds[1] < 0 ? -1 : control_hide_fd(fds[1]);
    att->dev_fd = fds[2] < 0 ? -1 : control_hide_fd(fds[2]);
    if (err) {
        close_if(fds[0]);
        return err;
    }
    memcpy(att->path, msg.text, sizeof att->path);
    att->path[sizeof att->path - 1] = 0;
    fds[0] = fds[0] < 0 ? -1 : control_hide_fd(fds[0]);
    err = fds[0] < 0 || att->mem_fd < 0 || att->dev_fd < 0 ? -EPROTO : mm_open(&att->mm, fds[0]);
    if (err)
        close_if(fds[0]);
    return err;
}

/* The server takes the slot back and counts what it did; without it we do. */
static void say_goodbye(struct attachment *att)
{
    struct msg msg = {.op = MSG_DETACH}, reply;
    int fds[MSG_FDS];
    int err = att->ctl < 0 ? -EPIPE : control_send(att->ctl, &msg, NULL, 0);

    do
        err = err ? err : control_recv(att->ctl, &reply, fds, CONTROL_TIMEOUT_MS);
    while (!err && reply.op != MSG_REPLY); /* it may have asked for something meanwhile */
    if (err)
        slot_reap(&att->mm, att->slot);
}

/* Ends an attachment; `unmap` is false when something else takes its window. */
static void retire(struct attachment *att, bool unmap)
{
    pthread_mutex_lock(&att->lock);
    service_unwatch(att);
    if (unmap)
        munmap(att->base, att->mm.size);
    say_goodbye(att);
    drop(att, false, false);
    pthread_mutex_unlock(&att->lock);
}

/* What MAP_FIXED is about to replace. As in the series an attachment goes whole
 * or not at all: EINVAL. */
static int replace_attachments(const struct attachment *by)
{
    uint8_t *end = by->base + by->mm.size;

    for (unsigned i = 0; i < ATTACHMENTS_MAX; i++) {
        const struct attachment *att = &attachments[i];

        if (att->live && att->base < end && att->base + att->mm.size > by->base &&
            (att->base < by->base || att->base + att->mm.size > end))
            return -EINVAL;
    }
    for (unsigned i = 0; i < ATTACHMENTS_MAX; i++)
        if (attachments[i].live && attachments[i].base >= by->base && attachments[i].base < end)
            retire(&attachments[i], false);
    return 0;
}

static int attach(struct attachment *att, int fd, void *addr, int flags)
{
    struct msg ready = {.op = MSG_READY};
    bool mapped = false, claimed = false;
    int err = fetch(att, fd);

    if (!err)
        err = window_reserve(addr, att->mm.size, att->mm.quantum, flags, &att->base);
    mapped = !err && !(flags & MAP_FIXED);
    att->linked = err ? NULL : calloc(att->mm.size / att->mm.quantum / 64 + 1, sizeof(uint64_t));
    if (!err && !att->linked)
        err = -ENOMEM;
    if (!err && flags & MAP_FIXED)
        err = replace_attachments(att);
    if (!err)
        err = claim(att);
    claimed = !err;
    if (!err) {
        mapped = true; /* also with MAP_FIXED: what was there is gone */
        err = map_window(att);
    }
    ready.arg[0] = att->slot;
    if (!err)
        err = control_call(att->ctl, &ready, &att->uffd, 1, NULL);
    if (!err)
        err = service_start();
    pthread_mutex_lock(&att->lock);
    if (!err)
        err = service_watch(att);
    if (err)
        drop(att, mapped, claimed);
    else
        att->live = true;
    pthread_mutex_unlock(&att->lock);
    return err;
}

/* The child's own slot, window and connection. The server hears of the child on
 * the parent's connection; the answer comes to the child's service thread. */
static int attach_child(struct attachment *att)
{
    struct msg forked = {.op = MSG_FORKED};
    int parent = att->ctl, pair[2], err;

    att->poisons_used = 0;
    att->next = 0;
    att->ctl = -1;
    close_if(att->uffd); /* the parent's */
    att->uffd = -1;
    memset(att->linked, 0, (att->mm.size / att->mm.quantum / 64 + 1) * sizeof(uint64_t));
    err = claim(att);
    if (!err)
        err = map_window(att);
    if (!err && parent >= 0 && !socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        forked.arg[0] = att->slot;
        if (!control_send(parent, &forked, (int[]){pair[1], att->uffd}, 2))
            att->ctl = control_hide_fd(pair[0]);
        else
            close(pair[0]); /* the server is away: the service thread rejoins */
        close(pair[1]);
    }
    close_if(parent);
    return err ? err : service_watch(att);
}

static void before_fork(void) { pthread_mutex_lock(&attach_lock); }

static void after_fork(void) { pthread_mutex_unlock(&attach_lock); }

static void in_child(void)
{
    int err;

    service_forget();
    err = service_start();
    for (unsigned i = 0; i < ATTACHMENTS_MAX; i++) {
        struct attachment *att = &attachments[i];

        pthread_mutex_init(&att->lock, NULL);
        if (!att->live)
            continue;
        if (!err && !attach_child(att))
            continue;
        /* fork() cannot fail any more. A window that works without us would
         * show memory the region does not have: let it fault instead. */
        mmap(att->base, att->mm.size, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        drop(att, false, false);
    }
    pthread_mutex_unlock(&attach_lock);
}

static void prepare_process(void)
{
    for (unsigned i = 0; i < ATTACHMENTS_MAX; i++)
        pthread_mutex_init(&attachments[i].lock, NULL);
    pthread_atfork(before_fork, after_fork, in_child);
}

/* All but the lock, which the service thread may be holding for a look. */
static void reset(struct attachment *att, int prot)
{
    memset((char *)att + sizeof att->lock, 0, sizeof *att - sizeof att->lock);
    att->mm.fd = att->mem_fd = att->dev_fd = att->uffd = att->ctl = -1;
    att->prot = prot & (PROT_READ | PROT_WRITE);
}

static struct attachment *find(const void *addr)
{
    for (unsigned i = 0; i < ATTACHMENTS_MAX; i++)
        if (attachments[i].live && attachments[i].base == addr)
            return &attachments[i];
    return NULL;
}

static struct attachment *unused(void)
{
    for (unsigned i = 0; i < ATTACHMENTS_MAX; i++)
        if (!attachments[i].live)
            return &attachments[i];
    return NULL;
}

static int check_arguments(int fd, int prot, int flags)
{
    int type = flags & MAP_TYPE, mode = fcntl(fd, F_GETFL);

    if (mode < 0)
        return -errno;
    if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
        return -EINVAL;
    mode &= O_ACCMODE;
    if (mode == O_WRONLY || (mode == O_RDONLY && prot & PROT_WRITE))
        return -EACCES;
    return 0;
}

void *mshare_attach(int fd, void *addr, int prot, int flags)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct attachment *att;
    void *base = MAP_FAILED;
    int err;

    pthread_once(&once, prepare_process);
    pthread_mutex_lock(&attach_lock);
    err = check_arguments(fd, prot, flags);
    att = unused();
    if (!err && !att)
        err = -ENOMEM;
    if (!err) {
        reset(att, prot);
        err = attach(att, fd, addr, flags);
    }
    if (!err)
        base = att->base;
    pthread_mutex_unlock(&attach_lock);
    if (err)
        errno = -err;
    return base;
}

int mshare_detach(void *addr)
{
    pthread_mutex_lock(&attach_lock);
    struct attachment *att = find(addr);
    if (att)
        retire(att, true);
    pthread_mutex_unlock(&attach_lock);
    if (att)
        return 0;
    errno = EINVAL;
    return -1;
}

int mshare_map(int fd, uint64_t region_offset, uint64_t size, int prot, int flags, int object_fd,
               uint64_t offset)
{
    struct mshare_create create = {
        .region_offset = region_offset,
        .size = size,
        .offset = offset,
        .prot = (uint32_t)prot,
        .flags = (uint32_t)flags,
        .fd = (uint32_t)object_fd,
    };

    return ioctl(fd, MSHAREFS_CREATE_MAPPING, &create);
}

int mshare_unmap(int fd, uint64_t region_offset, uint64_t size)
{
    struct mshare_unmap range = {.region_offset = region_offset, .size = size};

    return ioctl(fd, MSHAREFS_UNMAP, &range);
}

int mshare_stat(int fd, struct mshare_stat *st)
{
    struct msg msg = {.op = MSG_STAT};
    int sock = control_connect(fd);
    int err = sock < 0 ? sock : control_call(sock, &msg, NULL, 0, NULL);

    close_if(sock);
    if (err) {
        errno = -err;
        return -1;
    }
    memcpy(st, msg.text, sizeof *st);
    return 0;
}

_Static_assert(sizeof(struct mshare_stat) <= MSG_TEXT, "the answer fits a message");
