/*
 * attach.c - attach, detach.
 *
 *   attach   server: .mm, .mem, userfaultfd device
 *            window of .mem, a slot, a userfaultfd over the window
 *            server: READY with the userfaultfd; the service thread takes over
 *   detach   window gone, slot given back
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
#include <sys/stat.h>
#include <unistd.h>

#include "client/attachment.h"
#include "client/window.h"
#include "core/control.h"
#include "msharefs.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

void attach_read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);

    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = 0;
}

uint64_t attach_start_time(void)
{
    char text[1024], *at;

    attach_read_text("/proc/self/stat", text, sizeof text);
    at = strrchr(text, ')'); /* the name may hold anything, also this */
    for (unsigned field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

int attach_map(const struct attachment *att)
{
    /* Not to be accessed before it is watched: what came in between would come without
     * us, and stay. Other threads may be at work where there was a window before. Nor is
     * it filled as it is made, after mlockall(MCL_FUTURE). */
    void *got = mmap(att->base, att->length, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
                     att->mem_fd, 0);

    if (got == MAP_FAILED)
        return -errno;
    munlock(att->base, att->length);
    /* A core dump would walk the whole window page by page. */
    if (!is_adopted(att))
        madvise(att->base, att->length, MADV_DONTDUMP);
    return 0;
}

int attach_uffd(const struct attachment *att, uint64_t more)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
                    UFFD_FEATURE_WP_HUGETLBFS_SHMEM | more,
    };
    int uffd = ioctl(att->dev_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

    if (uffd < 0)
        return -errno;
    uffd = control_hide_fd(uffd);
    if (uffd >= 0 && ioctl(uffd, UFFDIO_API, &api)) {
        const int err = errno == EINVAL ? -ENOSYS : -errno;

        close(uffd);
        return err;
    }
    return uffd;
}

int attach_watch(struct attachment *att)
{
    int err = attach_uffd(att, 0);

    if (err < 0)
        return err;
    att->uffd = err;
    return is_adopted(att) ? handover_inherit(att)
                           : uffd_watch(att->uffd, (uintptr_t)att->base, att->length);
}

/* The inode number of the pid namespace of process `pid`. A child need not ask for it again:
 * to look anything up in /proc takes half as long as making a thread. */
static struct {
    pid_t pid;
    uint32_t inode; /* 0, the server's, without /proc */
} namespace;

static uint32_t own_pid_namespace(void)
{
    struct stat found;

    if (namespace.pid != getpid()) {
        namespace.inode = stat("/proc/self/ns/pid", &found) ? 0 : (uint32_t)found.st_ino;
        namespace.pid = getpid();
    }
    return namespace.inode;
}

void attach_forked(void)
{
    /* In another namespace than its parent a child sees none. */
    namespace.pid = getppid() ? getpid() : 0;
}

int attach_claim(struct attachment *att, uint64_t start_time)
{
    uint64_t process = slot_process((uint32_t)getpid(), own_pid_namespace());
    int slot = slot_claim(&att->mm, process, start_time);

    if (slot < 0)
        return slot;
    att->slot = (unsigned)slot;
    att->claim = atomic_load(&att->mm.slots[slot].claim);
    att->mm.slots[slot].base = (uintptr_t)att->base;
    att->mm.slots[slot].prot = (uint32_t)att->asked;
    att->mm.slots[slot].way = att->way;
    return 0;
}

static void close_if(int fd)
{
    if (fd >= 0)
        close(fd);
}

void attach_drop(struct attachment *att, bool claimed)
{
    if (claimed)
        slot_release(&att->mm, att->slot, att->claim);
    objects_drop(att);
    budget_end(att);
    close_if(att->uffd);
    close_if(att->moved_uffd);
    close_if(att->ctl);
    close_if(att->mem_fd);
    close_if(att->dev_fd);
    free(att->linked);
    att->linked = NULL;
    pieces_free(&att->pieces);
    mm_close(&att->mm);
    att->live = false;
}

/* Asks for the region's objects. What the descriptor does not allow is not asked
 * for: check_attach() refuses it in its turn. */
static int fetch(struct attachment *att, int mode)
{
    const int prot = mode == O_RDONLY ? att->asked & ~PROT_WRITE : att->asked;
    struct msg msg = {.op = MSG_ATTACH, .arg = {(uint64_t)prot}};
    int fds[MSG_FDS] = {-1, -1, -1};
    int err = control_call(att->ctl, &msg, NULL, 0, fds);

    if (err)
        return err;
    att->mem_fd = fds[1] < 0 ? -1 : control_hide_fd(fds[1]);
    att->dev_fd = fds[2] < 0 ? -1 : control_hide_fd(fds[2]);
    att->prot = msg.arg[2] & ATTACH_ANY_PROT ? PROT_READ | PROT_WRITE : att->asked;
    memcpy(att->path, msg.text, sizeof att->path);
    att->path[sizeof att->path - 1] = 0;
    fds[0] = fds[0] < 0 ? -1 : control_hide_fd(fds[0]);
    err = fds[0] < 0 || att->mem_fd < 0 || att->dev_fd < 0 ? -EPROTO : mm_open(&att->mm, fds[0]);
    if (err)
        close_if(fds[0]);
    return err;
}

static int set_length(struct attachment *att, const struct attach_request *request)
{
    const uint64_t length = (request->length + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);

    att->length = request->length ? length : att->mm.size;
    return att->length == att->mm.size || (is_adopted(att) && att->length < att->mm.size) ? 0
                                                                                          : -EINVAL;
}

static int allocate(struct attachment *att)
{
    att->linked = calloc(att->mm.size / att->mm.quantum / 64 + 1, sizeof(uint64_t));
    if (!att->linked)
        return -ENOMEM;
    return is_adopted(att) ? pieces_init(&att->pieces, (uintptr_t)att->base, attachment_end(att))
                           : 0;
}

static int map_over(void *arg) { return attach_map(arg); }

/* The window, where the request wants it, under our watch. *mapped: it is there,
 * or a part of the address space is reserved for it. */
static int make_window(struct attachment *att, int fd, int mode,
                       const struct attach_request *request, bool *mapped)
{
    const bool replace = request->flags & MAP_FIXED && !(request->flags & MAP_FIXED_NOREPLACE);
    int err = window_reserve(request->addr, att->length, att->mm.quantum, request->flags,
                             &att->base);

    *mapped = !err && !replace;
    if (!err)
        err = check_attach(fd, mode, request, att->length);
    if (!err)
        err = allocate(att);
    if (err)
        return err;
    attachments_cover(att);
    err = replace ? attachments_replace((uintptr_t)att->base, attachment_end(att), map_over, att)
                  : attach_map(att);
    *mapped = *mapped || !err;
    if (!err)
        err = attach_watch(att);
    return err ? err : mprotect(att->base, att->length, att->prot) ? -errno : 0;
}

/* The server takes the slot back and counts what it did; without it we do. */
static void say_goodbye(struct attachment *att)
{
    /* Replies carry the number of their request; one may still be on its way to the
     * service thread, with 0. */
    struct msg msg = {.op = MSG_DETACH, .seq = 1}, reply;
    int fds[MSG_FDS];
    int err = att->ctl < 0 ? -EPIPE : control_send(att->ctl, &msg, NULL, 0);

    do {
        err = err ? err : control_recv(att->ctl, &reply, fds, CONTROL_TIMEOUT_MS);
        for (unsigned i = 0; !err && i < MSG_FDS; i++)
            close_if(fds[i]); /* of an object that somebody waited for */
        if (err == -EMFILE) /* one of those was lost */
            err = 0;
    } while (!err && (reply.op != MSG_REPLY || reply.seq != msg.seq));
    /* It may have done so after all, and just not in time. */
    if (err)
        slot_release(&att->mm, att->slot, att->claim);
}

static int attach(struct attachment *att, int fd, const struct attach_request *request)
{
    struct msg ready = {.op = MSG_READY};
    const int type = request->flags & MAP_TYPE, mode = fcntl(fd, F_GETFL) & O_ACCMODE;
    bool mapped = false, claimed = false;
    int err = 0;

    att->ctl = control_connect(fd);
    if (att->ctl < 0)
        return att->ctl;
    if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
        err = -EINVAL;
    if (!err)
        err = fetch(att, mode);
    if (!err)
        err = set_length(att, request);
    if (!err)
        err = make_window(att, fd, mode, request, &mapped);
    if (!err)
        err = attach_claim(att, attach_start_time());
    claimed = !err;
    if (!err)
        err = budget_start(att);
    ready.arg[0] = att->slot;
    ready.arg[1] = att->claim;
    if (!err)
        err = control_call(att->ctl, &ready, &att->uffd, 1, NULL);
    /* From here on we are asked ourselves (ARRANGE) when it changes. */
    if (!err)
        err = arrange(att, 0, att->mm.size, false);
    if (!err)
        err = service_start();
    pthread_mutex_lock(&att->lock);
    if (!err)
        err = service_watch(att);
    /* The window goes first: then no thread of ours can be needed any more. */
    if (err && mapped)
        munmap(att->base, att->length);
    if (err)
        attach_drop(att, claimed);
    else
        att->live = true;
    pthread_mutex_unlock(&att->lock);
    return err;
}

/* All but the lock, which the service thread may be holding for a look. */
static void reset(struct attachment *att, const struct attach_request *request)
{
    memset((char *)att + sizeof att->lock, 0, sizeof *att - sizeof att->lock);
    att->mm.fd = att->mem_fd = att->dev_fd = att->uffd = att->moved_uffd = att->ctl = -1;
    att->way = request->way;
    att->asked = request->prot & (PROT_READ | PROT_WRITE);
}

int attach_request(int fd, const struct attach_request *request, void **base)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int err;

    if (fcntl(fd, F_GETFD) < 0)
        return -errno;
    pthread_once(&once, fork_prepare);
    attachments_lock();
    struct attachment *att = attachment_unused();
    if (att) {
        reset(att, request);
        err = attach(att, fd, request);
        *base = att->base;
    } else {
        err = -ENOMEM;
    }
    attachments_unlock();
    return err;
}

void *mshare_attach(int fd, void *addr, int prot, int flags)
{
    const struct attach_request request = {.addr = addr, .prot = prot, .flags = flags};
    void *base;
    int err = attach_request(fd, &request, &base);

    if (!err)
        return base;
    errno = -err;
    return MAP_FAILED;
}

void attach_end(struct attachment *att)
{
    /* A child of a bare clone(2) has copies of its parent's connection and epoll. */
    if (attachments_own()) {
        service_unwatch(att);
        say_goodbye(att);
    }
    attach_drop(att, false);
}

static int unmap(void *arg)
{
    const struct attachment *att = arg;

    return munmap(att->base, att->length) ? -errno : 0;
}

int mshare_detach(void *addr)
{
    int err = -EINVAL;

    attachments_lock();
    struct attachment *att = attachment_over((uintptr_t)addr, (uintptr_t)addr + 1);
    if (att && att->base == addr)
        err = attachments_replace((uintptr_t)addr, attachment_end(att), unmap, att);
    attachments_unlock();
    if (!err)
        return 0;
    errno = -err;
    return -1;
}
