/*
 * range.h - verbs on a range of memory, in every way in which they can be asked for:
 *
 *   plain          of plain shared memory, by the system calls of Linux
 *   region PATH    of a region, by the verbs of the same name (PATH: a new region file)
 *   ioctl PATH     of a region, by ioctl(2) on its descriptor
 *   window PATH    of a window of a region, by the system calls again (under the preload library,
 *                  with -o window=inner)
 *
 * and then what the memory is: nothing for anonymous memory, "memfd", "huge" (a memfd of pages of
 * 2 MiB), or the path of a new file.
 */
#ifndef RANGE_H
#define RANGE_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "msharefs.h"

#define PAGES 512ul
#define SIZE (PAGES * PAGE)
#define HUGE_PAGE (2ul << 20)

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static int region = -1;
static int object = -1; /* a file that has the memory; or it is anonymous */
static bool by_ioctl;
static unsigned long PAGE = 4096; /* a unit of the memory: 2 MiB where it is of huge pages */
static unsigned char *memory;
static sigjmp_buf caught;
static siginfo_t got;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    got = *info;
    siglongjmp(caught, 1);
}

/* A part of a window: munmap(2) of the whole would detach it. */
static void attach_window(const char *path)
{
    const int file = open(path, O_RDWR | O_CREAT, 0600);

    if (file < 0 || ftruncate(file, (off_t)(2 * SIZE)))
        die(path);
    memory = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED)
        die("attach");
}

static void attach(const char *path)
{
    memory = mmap(NULL, 2 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED)
        memory += -(unsigned long)memory % PAGE;
    if (path) {
        region = open(path, O_RDWR | O_CREAT, 0600);
        if (region < 0 || ftruncate(region, (off_t)SIZE))
            die(path);
        memory = mshare_attach(region, 0, 0, NULL, 0);
    }
    if (memory == MAP_FAILED)
        die("attach");
}

static int range_verb(unsigned long command, unsigned long offset, unsigned long size,
                      unsigned flags)
{
    const struct mshare_range range = {offset, size, flags, 0};

    return ioctl(region, command, &range);
}

static int map(unsigned long page, unsigned long pages, int prot)
{
    const int reserve = PAGE == HUGE_PAGE ? MAP_NORESERVE : 0;
    const int flags = MAP_SHARED | MAP_FIXED | reserve | (object < 0 ? MAP_ANONYMOUS : 0);
    const unsigned long at = page * PAGE, size = pages * PAGE;
    const struct mshare_create create = {
        at, size, at, (unsigned)prot, (unsigned)flags, (unsigned)object};

    if (by_ioctl)
        return ioctl(region, MSHAREFS_CREATE_MAPPING, &create);
    if (region >= 0)
        return mshare_map(region, (off_t)at, size, prot, flags, object, (off_t)at);
    return mmap(memory + at, size, prot, flags, object, (off_t)at) == MAP_FAILED ? -1 : 0;
}

static int unmap(unsigned long page, unsigned long pages)
{
    const struct mshare_unmap range = {page * PAGE, pages * PAGE};

    if (by_ioctl)
        return ioctl(region, MSHAREFS_UNMAP, &range);
    return region >= 0 ? mshare_unmap(region, (off_t)(page * PAGE), pages * PAGE)
                       : munmap(memory + page * PAGE, pages * PAGE);
}

static int protect_bytes(unsigned long offset, unsigned long size, int prot)
{
    const struct mshare_protect range = {offset, size, (unsigned)prot, 0};

    if (by_ioctl)
        return ioctl(region, MSHAREFS_PROTECT, &range);
    return region >= 0 ? mshare_protect(region, (off_t)offset, size, prot)
                       : mprotect(memory + offset, size, prot);
}

static int protect(unsigned long page, unsigned long pages, int prot)
{
    return protect_bytes(page * PAGE, pages * PAGE, prot);
}

static int advise(unsigned long offset, unsigned long size, int advice)
{
    const struct mshare_advise range = {offset, size, (unsigned)advice, 0};

    if (by_ioctl)
        return ioctl(region, MSHAREFS_ADVISE, &range);
    return region >= 0 ? mshare_advise(region, (off_t)offset, size, advice)
                       : madvise(memory + offset, size, advice);
}

static int lock(unsigned long offset, unsigned long size, unsigned flags)
{
    if (by_ioctl)
        return range_verb(MSHAREFS_LOCK, offset, size, flags);
    return region >= 0 ? mshare_lock(region, (off_t)offset, size, flags)
                       : mlock2(memory + offset, size, flags);
}

static int unlock(unsigned long offset, unsigned long size)
{
    if (by_ioctl)
        return range_verb(MSHAREFS_UNLOCK, offset, size, 0);
    return region >= 0 ? mshare_unlock(region, (off_t)offset, size)
                       : munlock(memory + offset, size);
}

static int sync_range(unsigned long offset, unsigned long size, int flags)
{
    if (by_ioctl)
        return range_verb(MSHAREFS_SYNC, offset, size, (unsigned)flags);
    return region >= 0 ? mshare_sync(region, (off_t)offset, size, flags)
                       : msync(memory + offset, size, flags);
}

static int query(unsigned long offset, unsigned long size, unsigned char *vec)
{
    struct mshare_query range = {.region_offset = offset, .size = size};

    if (by_ioctl) {
        const int failed = ioctl(region, MSHAREFS_QUERY, &range);

        if (!failed)
            memcpy(vec, range.vec, (size + PAGE - 1) / PAGE);
        return failed;
    }
    return region >= 0 ? mshare_query(region, (off_t)offset, size, vec)
                       : mincore(memory + offset, size, vec);
}

static int seal(unsigned long offset, unsigned long size)
{
    if (by_ioctl)
        return range_verb(MSHAREFS_SEAL, offset, size, 0);
    return region >= 0 ? mshare_seal(region, (off_t)offset, size)
                       : (int)syscall(SYS_mseal, memory + offset, size, 0);
}

static int bind_range(unsigned long offset, unsigned long size, int mode, unsigned long nodes,
                      unsigned long maxnode, unsigned flags)
{
    struct mshare_mbind range = {offset, size, (unsigned)mode, flags, maxnode, {nodes}};
    const unsigned long *mask = maxnode ? &nodes : NULL;

    if (by_ioctl)
        return ioctl(region, MSHAREFS_MBIND, &range);
    if (region >= 0)
        return mshare_mbind(region, (off_t)offset, size, mode, mask, maxnode, flags);
    return (int)syscall(SYS_mbind, memory + offset, size, mode, mask, maxnode, flags);
}

static const char *said(int failed) { return failed ? strerrorname_np(errno) : "0"; }

/* Pages 0 to 15 are read and written, 16 to 19 read-only, 20 to 23 of no access, 24 to 31 are not
 * mapped, and 32 to 47 are again. Pages 0 to 7 have been written. */
static void fresh(void)
{
    if (unmap(0, PAGES) ||
        (object >= 0 && (ftruncate(object, 0) || ftruncate(object, (off_t)SIZE))) ||
        map(0, 24, PROT_READ | PROT_WRITE) || protect(16, 4, PROT_READ) ||
        protect(20, 4, PROT_NONE) || map(32, 16, PROT_READ | PROT_WRITE))
        die("a fresh start");
    for (unsigned long page = 0; page < 8; page++)
        memory[page * PAGE] = (unsigned char)(page + 1);
}

static void touch(unsigned long page, bool write)
{
    unsigned char *volatile at = memory + page * PAGE;

    if (sigsetjmp(caught, 1)) {
        printf(" %lu:signal %d code %d", page, got.si_signo, got.si_code);
        return;
    }
    if (write)
        *(volatile unsigned char *)at = 99;
    printf(" %lu:%d", page, *(volatile unsigned char *)at);
}

static void show_pages(unsigned long from, unsigned long to)
{
    for (; from < to; from++)
        touch(from, false);
}

static void begin(int argc, char **argv)
{
    const struct sigaction action = {.sa_sigaction = on_signal,
                                     .sa_flags = SA_SIGINFO | SA_NODEFER};
    const bool plain = argc < 2 || !strcmp(argv[1], "plain");
    const char *what = argc > (plain ? 2 : 3) ? argv[plain ? 2 : 3] : NULL;

    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    if (what) {
        PAGE = strcmp(what, "huge") ? PAGE : HUGE_PAGE;
        if (!strcmp(what, "memfd") || PAGE == HUGE_PAGE)
            object = memfd_create("object", PAGE == HUGE_PAGE ? MFD_HUGETLB : 0);
        else
            object = open(what, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (object < 0)
            die(what);
    }
    by_ioctl = !plain && !strcmp(argv[1], "ioctl");
    if (!plain && !strcmp(argv[1], "window"))
        attach_window(argv[2]);
    else
        attach(plain ? NULL : argv[2]);
}

#endif
