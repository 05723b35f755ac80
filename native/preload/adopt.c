/*
 * preload/adopt.c - shared memory that the program makes for itself, as a region.
 *
 * `msharefs run --adopt-anon SIZE` asks for it: an anonymous shared mapping of at least
 * that size becomes a region without a name, which children of fork() share as they
 * would share the memory. For the program it is plain memory: it unmaps, protects and
 * advises parts of it, which the kernel does, in that process only; the region has one
 * mapping from end to end, with all rights.
 *
 * Memory that cannot be a region is left alone: huge pages, locked, executable or 32-bit
 * memory, and a fixed address that is no multiple of the quantum.
 */
#define _GNU_SOURCE
#include "preload/adopt.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "client/api.h"
#include "client/attachments.h"
#include "msharefs.h"
#include "preload/sys.h"

/* Another process may be using a name at the moment. */
#define NAMES_TRIED 100u

static uint64_t least = UINT64_MAX; /* the fewest bytes to be adopted */
static char mount[PATH_MAX / 2];

/* The strings are copied: a program that shows its state in ps(1) writes over its environment. */
__attribute__((constructor)) static void read_environment(void)
{
    const char *size = getenv("MSHAREFS_ADOPT_ANON"), *where = getenv("MSHAREFS_MOUNT");

    if (!size || !where || strlen(where) >= sizeof mount)
        return;
    strcpy(mount, where);
    least = strtoull(size, NULL, 10);
}

/* The mount's quantum, or 0 and errno. */
static uint64_t quantum(void)
{
    char path[PATH_MAX], text[32];
    ssize_t got;
    int fd;

    snprintf(path, sizeof path, "%s/mshare_info", mount);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    got = read(fd, text, sizeof text - 1);
    sys_close(fd);
    text[got < 0 ? 0 : got] = 0;
    return strtoull(text, NULL, 10);
}

/* A new region file; its name is in `path`. */
static int make_file(char path[PATH_MAX])
{
    int fd = -1;

    for (unsigned i = 0; fd < 0 && i < NAMES_TRIED; i++) {
        snprintf(path, PATH_MAX, "%s/.anon-%d-%u", mount, (int)getpid(), i);
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    return fd;
}

/* Sizing a file beyond RLIMIT_FSIZE would be SIGXFSZ; memory does not have that limit. */
static bool may_size(uint64_t size)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_FSIZE, &limit) || size <= limit.rlim_cur;
}

static int make_region(const struct attach_request *request, void **got)
{
    const int rights = PROT_READ | PROT_WRITE | PROT_EXEC;
    const uint64_t step = quantum();
    const uint64_t length = (request->length + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    const uint64_t size = step ? (length + step - 1) / step * step : 0;
    char path[PATH_MAX];
    int fd, err;

    if (!step)
        return errno ? -errno : -EINVAL;
    if (!may_size(size))
        return -EFBIG;
    if (request->flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) && (uintptr_t)request->addr % step)
        return -EINVAL;
    fd = make_file(path);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size) ||
        mshare_map(fd, 0, length, rights, MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, -1, 0))
        err = -errno;
    else
        err = api_attach(fd, request, got);
    unlink(path);
    sys_close(fd);
    return err;
}

/* The program works without it, but that is not what was asked for: say so. */
static void complain(uint64_t length, int err)
{
    char text[256];
    int size = snprintf(text, sizeof text,
                        "msharefs: process %d: %llu bytes of shared memory stay plain: %s\n",
                        (int)getpid(), (unsigned long long)length, strerror(-err));

    if (write(STDERR_FILENO, text, (size_t)size) < 0)
        return;
}

bool preload_adopt(void *addr, size_t length, int prot, int flags, void **got)
{
    const int other = MAP_HUGETLB | MAP_LOCKED | MAP_GROWSDOWN | MAP_32BIT;
    const struct attach_request request = {
        .addr = addr,
        .length = length,
        .prot = prot,
        .flags = flags & ~MAP_ANONYMOUS,
        .way = ATTACH_ADOPTED,
    };
    int err;

    if (length < least || (flags & MAP_TYPE) != MAP_SHARED || flags & other || prot & PROT_EXEC ||
        length > HOST_END)
        return false;
    attachments_lock();
    err = make_region(&request, got);
    if (err && err != -EEXIST) /* that is the kernel's answer too */
        complain(length, err);
    attachments_unlock();
    return !err;
}
