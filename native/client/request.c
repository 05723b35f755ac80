/* request.c - the bell between a program and its shadow; see request.h. */
#define _GNU_SOURCE
#include "client/request.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/uffd.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

int request(struct attachment *att, enum request_op op, uint64_t arg, uint64_t end)
{
    struct request *request = &att->shadow.request;

    request->arg = arg;
    request->end = end;
    atomic_store(&request->op, op);
    lock_nudge(&att->lock);
    while (atomic_load(&att->shadow.alive)) {
        madvise(att->shadow.bell, PAGE_SIZE, MADV_DONTNEED_LOCKED);
        (void)*(volatile uint8_t *)att->shadow.bell; /* returns when it was answered */
        if (atomic_load(&request->op) == REQUEST_NONE)
            return request->result;
    }
    atomic_store(&request->op, REQUEST_NONE);
    return -ESRCH;
}

int request_listen(struct attachment *att)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {(uintptr_t)att->shadow.bell, PAGE_SIZE},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    const int fd = uffd_new(att->dev_fd);

    att->shadow.bell_fd = fd;
    if (fd < 0)
        return fd;
    /* The page may be the one that a parent's shadow has put there. */
    madvise(att->shadow.bell, PAGE_SIZE, MADV_DONTNEED_LOCKED);
    return ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range) ? -errno : 0;
}

void request_answer(struct attachment *att,
                    int (*serve)(struct attachment *att, const struct request *request))
{
    struct request *request = &att->shadow.request;
    struct uffdio_zeropage page = {.range = {(uintptr_t)att->shadow.bell, PAGE_SIZE}};
    struct uffd_msg msg;

    if (atomic_load(&request->op) != REQUEST_NONE) {
        request->result = serve(att, request);
        atomic_store(&request->op, REQUEST_NONE);
    }
    /* It may have been rung already, or only now, or the page may be there. */
    (void)!read(att->shadow.bell_fd, &msg, sizeof msg);
    if (ioctl(att->shadow.bell_fd, UFFDIO_ZEROPAGE, &page))
        ioctl(att->shadow.bell_fd, UFFDIO_WAKE, &page.range);
}
