/*
 * preload/tell.c - memory that Linux makes for the program, as a region; see tell.h.
 */
#define _GNU_SOURCE
#include "preload/tell.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/layout.h"
#include "preload/filter.h"
#include "preload/mounts.h"
#include "preload/refused.h"
#include "preload/sys.h"

/* On the root of the mount; msharefs/mountpoint.py has this, too. */
struct adopt_request {
    uint64_t start, end; /* where the caller has mapped it */
    uint64_t offset;     /* of the object's part there */
    int32_t result;      /* out: 0 or -errno */
    char why[228];       /* out: a sentence with an error */
};

#define MSHAREFS_ADOPT _IOWR('x', 0x1b, struct adopt_request)

static const char *const names[TELL_CLASSES] = {"zero", "sysv", "memfd", "shm", "file"};
static const char *const people_say[TELL_CLASSES] = {"/dev/zero", "System V shared memory",
                                                     "a memfd", "a file in memory", "a file"};

static uint64_t least[TELL_CLASSES] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
static bool budget; /* the program has one */
static char mount[PATH_MAX / 2];
static _Atomic unsigned told; /* the classes of which the program's user knows that they are not */

/* Sizes by class, as "sysv:2097152,shm:4096". The strings are copied: see adopt.c. */
__attribute__((constructor)) static void read_environment(void)
{
    const char *sizes = getenv("MSHAREFS_ADOPT"), *where = getenv("MSHAREFS_MOUNT");

    if (!where || strlen(where) >= sizeof mount)
        return;
    strcpy(mount, where);
    budget = getenv("MSHAREFS_PT_BUDGET") && *getenv("MSHAREFS_PT_BUDGET");
    for (const char *at = sizes; at; at = strchr(at, ',')) {
        at += *at == ',';
        for (unsigned i = 0; i < TELL_CLASSES; i++)
            if (!strncmp(at, names[i], strlen(names[i])) && at[strlen(names[i])] == ':')
                least[i] = strtoull(at + strlen(names[i]) + 1, NULL, 10);
    }
}

bool tell_wanted(enum tell_class what, uint64_t length) { return length >= least[what]; }

/* The program works without it, but that is not what was asked for: say so, once for each class. */
static void complain(enum tell_class what, const void *addr, uint64_t length, const char *why)
{
    char text[512];
    int size;

    refused_note(addr, length, why);
    if (atomic_fetch_or(&told, 1u << what) & 1u << what)
        return;
    size = snprintf(text, sizeof text,
                    "msharefs: process %d: %llu bytes of %s are not adopted: %s\n", (int)getpid(),
                    (unsigned long long)length, people_say[what], why);
    if (write(STDERR_FILENO, text, (size_t)size) < 0)
        return;
}

/* Past the functions that are cancellation points: mmap(2) is none. */
static int open_mount(void)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    long fd;

    do /* a signal may come before the server has read the request */
        fd = sys_syscall(SYS_openat, AT_FDCWD, (long)mount, flags, 0, 0, 0);
    while (fd < 0 && errno == EINTR);
    return (int)fd;
}

/* 0 or -errno; `request` has a sentence then, or none. */
static int ask(struct adopt_request *request)
{
    const int fd = open_mount();
    int err;

    if (fd < 0)
        return -errno;
    do
        err = ioctl(fd, MSHAREFS_ADOPT, request) ? -errno : request->result;
    while (err == -EINTR);
    sys_close(fd);
    request->why[sizeof request->why - 1] = 0;
    return err;
}

void tell_mapped(enum tell_class what, const void *addr, uint64_t length, uint64_t offset)
{
    const uint64_t start = (uintptr_t)addr;
    struct adopt_request request = {
        .start = start,
        .end = (start + length + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1),
        .offset = offset,
    };
    const int saved = errno;
    int err;

    if (filter_given()) {
        complain(what, addr, length, "the program has a seccomp filter");
    } else if (budget) {
        complain(what, addr, length, "a budget counts faults, and Linux makes this memory");
    } else {
        err = ask(&request);
        if (err)
            complain(what, addr, length, *request.why ? request.why : strerror(-err));
    }
    errno = saved;
}

/* Which class the file is of, told without asking its file system, which may be the program's. */
static enum tell_class class_of(int fd)
{
    static const char memfd[] = "/memfd:", zero[] = "/dev/zero";
    char path[32], name[sizeof zero];
    ssize_t length;

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    length = readlink(path, name, sizeof name);
    if (length >= (ssize_t)sizeof memfd - 1 && !memcmp(name, memfd, sizeof memfd - 1))
        return TELL_MEMFD;
    if (length == sizeof zero - 1 && !memcmp(name, zero, sizeof zero - 1))
        return TELL_ZERO;
    return preload_in_memory(fd) ? TELL_SHM : TELL_FILE;
}

void tell_file(const struct mmap_call *call, const void *addr)
{
    const int type = call->flags & MAP_TYPE, saved = errno;
    bool any = call->shared_pt;
    enum tell_class what;

    for (unsigned i = 0; i < TELL_CLASSES; i++)
        any |= tell_wanted(i, call->length);
    if (!any || (type != MAP_SHARED && type != MAP_SHARED_VALIDATE) || call->flags & MAP_HUGETLB)
        return;
    what = class_of(call->fd);
    if (call->shared_pt || tell_wanted(what, call->length))
        tell_mapped(what, addr, call->length, (uint64_t)call->offset);
    errno = saved;
}
