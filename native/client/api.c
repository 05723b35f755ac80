/*
 * api.c - the public calls (msharefs.h): attach and detach, changes of a region through a
 * descriptor of it (the series' ioctls, and ours), a budget.
 */
#define _GNU_SOURCE
#include "client/api.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/attach.h"
#include "client/attachments.h"
#include "client/budget_set.h"
#include "client/detach.h"
#include "client/fork.h"
#include "client/from.h"
#include "core/control.h"
#include "msharefs.h"

/* A system call's result. */
static int answer(int err)
{
    if (!err)
        return 0;
    errno = -err;
    return -1;
}

__attribute__((constructor)) static void start(void) { fork_prepare(); }

int api_attach(int fd, const struct attach_request *request, void **base)
{
    int err;

    fork_attached();
    attachments_lock();
    err = attach(fd, request, base);
    attachments_unlock();
    return err;
}

void *mshare_attach(int fd, off_t offset, size_t size, void *addr, unsigned int flags)
{
    const int where = MAP_FIXED | MAP_FIXED_NOREPLACE;
    const int mode = fcntl(fd, F_GETFL);
    const bool reads = flags & MSHARE_ATTACH_READ || (mode & O_ACCMODE) == O_RDONLY;
    const struct attach_request request = {
        .addr = addr,
        .length = size,
        .offset = (uint64_t)offset,
        .prot = reads ? PROT_READ : PROT_READ | PROT_WRITE,
        .flags = MAP_SHARED | ((int)flags & where),
    };
    void *base;

    if (mode < 0)
        return MAP_FAILED;
    if (flags & ~((unsigned)where | MSHARE_ATTACH_READ)) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    return answer(api_attach(fd, &request, &base)) ? MAP_FAILED : base;
}

/* The attachment whose window begins at `addr`, or NULL. Precondition: the table's lock held. */
static struct attachment *attached_at(void *addr)
{
    struct attachment *att = attachment_over((uintptr_t)addr, (uintptr_t)addr + 1);

    return att && att->base == addr ? att : NULL;
}

int mshare_detach(void *addr)
{
    int err;

    attachments_lock();
    struct attachment *att = attached_at(addr);
    err = att ? detach(att) : -EINVAL;
    attachments_unlock();
    return answer(err);
}

int mshare_budget(void *addr, uint64_t bytes)
{
    int err = -EINVAL;

    attachments_lock();
    struct attachment *att = attached_at(addr);
    if (att) {
        attachment_lock(att);
        err = budget_set(att, bytes);
        attachment_unlock(att);
    }
    attachments_unlock();
    return answer(err);
}

/* Sends the object's descriptor to a server that may not fetch it. The server answers EPERM
 * once more if that was not the reason. */
static int map_given(int fd, const struct mshare_create *create)
{
    struct msg msg = {
        .op = MSG_MAP,
        .arg = {create->region_offset, create->size, create->prot, create->flags, create->offset}};
    const int object_fd = (int)create->fd;
    int sock = control_connect(fd);
    int err = sock < 0 ? sock : control_call(sock, &msg, &object_fd, 1, NULL);

    if (sock >= 0)
        close(sock);
    return answer(err);
}

/* The range of the caller's private memory becomes an attachment of the region's. */
static int map_from(struct from *from, int flags, int object_fd)
{
    const struct attach_request request = {
        .addr = (void *)from->addr,
        .length = from->size,
        .offset = from->offset,
        .prot = PROT_READ | PROT_WRITE,
        .flags = MAP_SHARED | MAP_FIXED,
        .from = true,
    };
    void *base;
    int err;

    if (flags != (MAP_SHARED | MAP_FIXED | (int)MSHARE_MAP_FROM) || object_fd != -1 ||
        from->prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC))
        return -EINVAL;
    err = from_copy(from);
    if (!err)
        err = api_attach(from->fd, &request, &base);
    from_end(from, err);
    return err;
}

int mshare_map(int fd, off_t offset, size_t size, int prot, int flags, int object_fd,
               off_t object_offset)
{
    struct from from = {fd, (uint64_t)object_offset, (uint64_t)offset, size, prot, -1, -1, false};
    struct mshare_create create;

    if (flags & (int)MSHARE_MAP_FROM)
        return answer(map_from(&from, flags, object_fd));
    memset(&create, 0,
           sizeof create); /* its end, too: valgrind looks at all that a call is given */
    create.region_offset = (uint64_t)offset;
    create.size = size;
    create.offset = (uint64_t)object_offset;
    create.prot = (uint32_t)prot;
    create.flags = (uint32_t)flags;
    create.fd = (uint32_t)object_fd;

    const int result = ioctl(fd, MSHAREFS_CREATE_MAPPING, &create);

    if (!result || errno != EPERM || flags & MAP_ANONYMOUS)
        return result;
    return map_given(fd, &create);
}

int mshare_unmap(int fd, off_t offset, size_t size)
{
    struct mshare_unmap range = {.region_offset = (uint64_t)offset, .size = size};

    return ioctl(fd, MSHAREFS_UNMAP, &range);
}

int mshare_protect(int fd, off_t offset, size_t size, int prot)
{
    struct mshare_protect change = {
        .region_offset = (uint64_t)offset, .size = size, .prot = (uint32_t)prot};

    return ioctl(fd, MSHAREFS_PROTECT, &change);
}

int mshare_stat(int fd, struct mshare_stat *st, size_t size)
{
    struct msg msg = {.op = MSG_STAT};
    int sock = control_connect(fd);
    int err = sock < 0 ? sock : control_call(sock, &msg, NULL, 0, NULL);

    if (sock >= 0)
        close(sock);
    if (!err) {
        memset(st, 0, size);
        memcpy(st, msg.text, size < sizeof *st ? size : sizeof *st);
    }
    return answer(err);
}

const char *mshare_version(void) { return MSHAREFS_VERSION; }

_Static_assert(sizeof(struct mshare_stat) <= MSG_TEXT, "the answer fits a message");
