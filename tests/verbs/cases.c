/*
 * cases.c - what the verbs on a range of memory answer and do, case by case: on plain shared memory
 * with the system calls of Linux, on a region with the verbs of the same name, or with the system
 * calls again, on a window of a region (under the preload library, with -o window=inner).
 *
 *   cases plain       cases region PATH       cases window PATH       (PATH: a new region file)
 *
 * Prints one line for each case. All must print the same.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "msharefs.h"

#define PAGE 4096ul
#define SIZE (2ul << 20)
#define PAGES (SIZE / PAGE)

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static int region = -1;
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

    if (file < 0 || ftruncate(file, 2 * SIZE))
        die(path);
    memory = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED)
        die("attach");
}

static void attach(const char *path)
{
    memory = mmap(NULL, 2 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (path) {
        region = open(path, O_RDWR | O_CREAT, 0600);
        if (region < 0 || ftruncate(region, SIZE))
            die(path);
        memory = mshare_attach(region, 0, 0, NULL, 0);
    }
    if (memory == MAP_FAILED)
        die("attach");
}

static int map(unsigned long page, unsigned long pages, int prot)
{
    const int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;

    if (region >= 0)
        return mshare_map(region, (off_t)(page * PAGE), pages * PAGE, prot, flags, -1, 0);
    return mmap(memory + page * PAGE, pages * PAGE, prot, flags, -1, 0) == MAP_FAILED ? -1 : 0;
}

static int unmap(unsigned long page, unsigned long pages)
{
    return region >= 0 ? mshare_unmap(region, (off_t)(page * PAGE), pages * PAGE)
                       : munmap(memory + page * PAGE, pages * PAGE);
}

static int protect(unsigned long page, unsigned long pages, int prot)
{
    return region >= 0 ? mshare_protect(region, (off_t)(page * PAGE), pages * PAGE, prot)
                       : mprotect(memory + page * PAGE, pages * PAGE, prot);
}

static int advise(unsigned long offset, unsigned long size, int advice)
{
    return region >= 0 ? mshare_advise(region, (off_t)offset, size, advice)
                       : madvise(memory + offset, size, advice);
}

static int lock(unsigned long offset, unsigned long size, unsigned flags)
{
    return region >= 0 ? mshare_lock(region, (off_t)offset, size, flags)
                       : mlock2(memory + offset, size, flags);
}

static int unlock(unsigned long offset, unsigned long size)
{
    return region >= 0 ? mshare_unlock(region, (off_t)offset, size)
                       : munlock(memory + offset, size);
}

static int sync_range(unsigned long offset, unsigned long size, int flags)
{
    return region >= 0 ? mshare_sync(region, (off_t)offset, size, flags)
                       : msync(memory + offset, size, flags);
}

static int query(unsigned long offset, unsigned long size, unsigned char *vec)
{
    return region >= 0 ? mshare_query(region, (off_t)offset, size, vec)
                       : mincore(memory + offset, size, vec);
}

static int seal(unsigned long offset, unsigned long size)
{
    return region >= 0 ? mshare_seal(region, (off_t)offset, size)
                       : (int)syscall(SYS_mseal, memory + offset, size, 0);
}

static int bind_range(unsigned long offset, unsigned long size, int mode, unsigned long nodes,
                      unsigned long maxnode, unsigned flags)
{
    if (region >= 0)
        return mshare_mbind(region, (off_t)offset, size, mode, &nodes, maxnode, flags);
    return (int)syscall(SYS_mbind, memory + offset, size, mode, &nodes, maxnode, flags);
}

static const char *said(int failed) { return failed ? strerrorname_np(errno) : "0"; }

/* Pages 0 to 15 are read and written, 16 to 19 read-only, 20 to 23 of no access, 24 to 31 are not
 * mapped, and 32 to 47 are again. Pages 0 to 7 have been written. */
static void fresh(void)
{
    if (unmap(0, PAGES) || map(0, 24, PROT_READ | PROT_WRITE) || protect(16, 4, PROT_READ) ||
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

static const struct {
    int number;
    const char *name;
} advices[] = {
    {0, "NORMAL"},         {1, "RANDOM"},          {2, "SEQUENTIAL"},
    {3, "WILLNEED"},       {4, "DONTNEED"},        {8, "FREE"},
    {9, "REMOVE"},         {14, "HUGEPAGE"},       {15, "NOHUGEPAGE"},
    {18, "WIPEONFORK"},    {20, "COLD"},           {21, "PAGEOUT"},
    {22, "POPULATE_READ"}, {23, "POPULATE_WRITE"}, {24, "DONTNEED_LOCKED"},
    {25, "COLLAPSE"},      {77, "of no meaning"},
};
#define ADVICES (sizeof advices / sizeof *advices)

/* On which memory each advice is possible, and that the bytes are right then. */
static void advice_cases(int advice, const char *name)
{
    fresh();
    printf("%s:", name);
    printf(" rw %s", said(advise(0, 8 * PAGE, advice)));
    show_pages(0, 9);
    printf(" one byte %s", said(advise(0, 1, advice)));
    printf(" nothing %s", said(advise(0, 0, advice)));
    printf(" ro %s", said(advise(16 * PAGE, 4 * PAGE, advice)));
    printf(" none %s", said(advise(20 * PAGE, 4 * PAGE, advice)));
    printf(" misaligned %s", said(advise(1, PAGE, advice)));
    printf(" hole %s", said(advise(24 * PAGE, PAGE, advice)));
    printf(" into a hole %s", said(advise(22 * PAGE, 4 * PAGE, advice)));
    printf(" over a hole %s", said(advise(12 * PAGE, 24 * PAGE, advice)));
    printf("\n");
}

static void locked_cases(int advice, const char *name)
{
    fresh();
    if (lock(0, 4 * PAGE, 0))
        die("lock");
    printf("%s, locked:", name);
    printf(" all of it %s", said(advise(0, 4 * PAGE, advice)));
    printf(" and more %s", said(advise(0, 8 * PAGE, advice)));
    if (unlock(0, 4 * PAGE))
        die("unlock");
    printf(" unlocked %s\n", said(advise(0, 4 * PAGE, advice)));
}

static void lock_cases(void)
{
    unsigned char vec[4];

    fresh();
    printf("lock:");
    printf(" rw %s", said(lock(32 * PAGE, 4 * PAGE, 0)));
    query(32 * PAGE, 4 * PAGE, vec);
    printf(" in memory %d%d%d%d", vec[0] & 1, vec[1] & 1, vec[2] & 1, vec[3] & 1);
    printf(" ro %s", said(lock(16 * PAGE, 4 * PAGE, 0)));
    printf(" none %s", said(lock(20 * PAGE, 4 * PAGE, 0)));
    printf(" hole %s", said(lock(24 * PAGE, PAGE, 0)));
    printf(" over a hole %s", said(lock(12 * PAGE, 24 * PAGE, 0)));
    printf(" nothing %s", said(lock(0, 0, 0)));
    printf(" flags %s", said(lock(0, PAGE, 6)));
    printf(" unlock: %s", said(unlock(0, 16 * PAGE)));
    printf(" hole %s", said(unlock(24 * PAGE, PAGE)));
    printf(" never locked %s\n", said(unlock(32 * PAGE, 16 * PAGE)));
}

static void limited_cases(void)
{
    const struct rlimit some = {8 * PAGE, 8 * PAGE}, none = {0, 0};

    fresh();
    if (setrlimit(RLIMIT_MEMLOCK, &some))
        die("setrlimit");
    printf("lock, limited: all %s", said(lock(0, 8 * PAGE, 0)));
    printf(" again %s", said(lock(0, 8 * PAGE, 0)));
    printf(" one more %s", said(lock(8 * PAGE, PAGE, 0)));
    printf(" unlock %s", said(unlock(0, PAGE)));
    printf(" now one %s", said(lock(8 * PAGE, PAGE, 0)));
    printf(" unmapped %s", said(unmap(1, 8)));
    printf(" then %s", said(lock(32 * PAGE, 8 * PAGE, 0)));
    if (setrlimit(RLIMIT_MEMLOCK, &none))
        die("setrlimit");
    printf(" nothing permitted %s", said(lock(9 * PAGE, PAGE, 0)));
    printf(" and flags %s", said(lock(9 * PAGE, PAGE, 6)));
    printf(" unlock %s\n", said(unlock(32 * PAGE, 8 * PAGE)));
}

static void sync_cases(void)
{
    fresh();
    printf("sync:");
    for (int flags = 0; flags < 8; flags++)
        printf(" %d %s", flags, said(sync_range(0, 8 * PAGE, flags)));
    printf(" 8 %s", said(sync_range(0, PAGE, 8)));
    printf(" misaligned %s", said(sync_range(1, PAGE, MS_SYNC)));
    printf(" ro %s", said(sync_range(16 * PAGE, 8 * PAGE, MS_SYNC)));
    printf(" hole %s", said(sync_range(24 * PAGE, PAGE, MS_SYNC)));
    printf(" over a hole %s", said(sync_range(12 * PAGE, 24 * PAGE, MS_ASYNC)));
    printf(" nothing %s", said(sync_range(0, 0, MS_SYNC)));
    if (lock(0, PAGE, 0))
        die("lock");
    printf(" locked %s", said(sync_range(0, PAGE, MS_SYNC)));
    printf(" and invalidated %s", said(sync_range(0, PAGE, MS_INVALIDATE)));
    printf(" with more %s\n", said(sync_range(0, 8 * PAGE, MS_INVALIDATE)));
    unlock(0, PAGE);
}

static void query_cases(void)
{
    unsigned char vec[PAGES];

    fresh();
    memset(vec, 0, sizeof vec);
    printf("query: rw %s ", said(query(0, 16 * PAGE, vec)));
    for (unsigned i = 0; i < 16; i++)
        printf("%d", vec[i] & 1);
    printf(" one byte %s", said(query(0, 1, vec)));
    printf(" none %s", said(query(20 * PAGE, 4 * PAGE, vec)));
    printf(" misaligned %s", said(query(1, PAGE, vec)));
    printf(" hole %s", said(query(24 * PAGE, PAGE, vec)));
    printf(" over a hole %s", said(query(12 * PAGE, 24 * PAGE, vec)));
    printf(" nothing %s", said(query(0, 0, vec)));
    advise(0, 4 * PAGE, 9); /* REMOVE */
    query(0, 16 * PAGE, vec);
    printf(" removed ");
    for (unsigned i = 0; i < 16; i++)
        printf("%d", vec[i] & 1);
    printf("\n");
}

static void mbind_cases(void)
{
    fresh();
    printf("mbind:");
    for (int mode = 0; mode < 8; mode++) {
        printf(" %d no node %s", mode, said(bind_range(0, 4 * PAGE, mode, 0, 0, 0)));
        printf(" node 0 %s", said(bind_range(0, 4 * PAGE, mode, 1, 64, 0)));
    }
    printf(" node 40 %s", said(bind_range(0, PAGE, 2, 1ul << 40, 64, 0)));
    printf(" flags %s", said(bind_range(0, PAGE, 2, 1, 64, 64)));
    printf(" move %s", said(bind_range(0, 8 * PAGE, 2, 1, 64, 2)));
    printf(" move all %s", said(bind_range(0, 8 * PAGE, 2, 1, 64, 4)));
    printf(" strict %s", said(bind_range(0, 8 * PAGE, 2, 1, 64, 1)));
    printf(" misaligned %s", said(bind_range(1, PAGE, 2, 1, 64, 0)));
    printf(" nothing %s", said(bind_range(0, 0, 2, 1, 64, 0)));
    printf(" default %s", said(bind_range(0, SIZE / 64, 0, 0, 0, 0)));
    show_pages(0, 3);
    printf("\n");
}

/* What is sealed stays so: this comes last. */
static void seal_cases(void)
{
    fresh();
    printf("seal: misaligned %s", said(seal(1, PAGE)));
    printf(" hole %s", said(seal(24 * PAGE, PAGE)));
    printf(" over a hole %s", said(seal(12 * PAGE, 24 * PAGE)));
    printf(" nothing %s", said(seal(0, 0)));
    printf(" then unmap %s", said(unmap(15, 1)));
    printf(" one page %s", said(seal(4 * PAGE, PAGE)));
    printf(" again %s", said(seal(4 * PAGE, PAGE)));
    printf(" unmap %s", said(unmap(4, 1)));
    printf(" with more %s", said(unmap(2, 4)));
    printf(" before %s", said(unmap(3, 1)));
    printf(" protect %s", said(protect(4, 1, PROT_READ)));
    printf(" with more %s", said(protect(4, 4, PROT_READ)));
    printf(" over a hole after %s", said(protect(4, 24, PROT_READ)));
    printf(" over a hole before %s", said(protect(3, 4, PROT_READ)));
    printf(" replace %s", said(map(4, 1, PROT_READ)));
    printf(" with more %s", said(map(2, 4, PROT_READ)));
    printf(" advise %s", said(advise(4 * PAGE, PAGE, 4)));
    printf(" lock %s", said(lock(4 * PAGE, PAGE, 0)));
    printf(" unlock %s", said(unlock(4 * PAGE, PAGE)));
    show_pages(0, 8);
    touch(4, true);
    printf("\n");
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};

    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    if (argc > 2 && !strcmp(argv[1], "window"))
        attach_window(argv[2]);
    else
        attach(argc > 2 ? argv[2] : NULL);
    for (unsigned i = 0; i < ADVICES; i++)
        advice_cases(advices[i].number, advices[i].name);
    for (unsigned i = 0; i < ADVICES; i++)
        locked_cases(advices[i].number, advices[i].name);
    lock_cases();
    sync_cases();
    query_cases();
    mbind_cases();
    if (!geteuid() && setresuid(65534, 65534, 65534)) /* who may not lock what he likes */
        die("setresuid");
    limited_cases();
    seal_cases();
    return 0;
}
