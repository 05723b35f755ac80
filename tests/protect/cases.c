/*
 * cases.c - the effects of a change of protection, case by case: on a plain shared
 * mapping with mprotect(2), or on a region with mshare_protect().
 *
 *   cases plain          cases region PATH      (PATH: a new region file)
 *
 * Prints one line for each case. Both must print the same.
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
#include <unistd.h>

#include "msharefs.h"

#define PAGE 4096ul
#define SIZE (2ul << 20)
#define PAGES (SIZE / PAGE)

static int region = -1;
static volatile unsigned char *memory;
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

static int protect(unsigned long offset, unsigned long size, int prot)
{
    if (region >= 0)
        return mshare_protect(region, (off_t)offset, size, prot);
    return mprotect((void *)(memory + offset), size, prot);
}

/* Removes everything; then there are SIZE bytes, and only the last page has been touched. */
static void fresh(int prot)
{
    const int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;

    if (region >= 0) {
        if (mshare_unmap(region, 0, SIZE) || mshare_map(region, 0, SIZE - PAGE, prot, flags, -1, 0))
            die("mshare_map");
    } else if (munmap((void *)memory, SIZE) ||
               mmap((void *)memory, SIZE - PAGE, prot, flags, -1, 0) == MAP_FAILED) {
        die("mmap");
    }
}

static void attach(const char *path)
{
    if (path) {
        region = open(path, O_RDWR | O_CREAT, 0600);
        if (region < 0 || ftruncate(region, SIZE))
            die(path);
        memory = mshare_attach(region, 0, 0, NULL, 0);
    } else {
        memory = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    if (memory == MAP_FAILED)
        die("attach");
}

static const char *rights(int prot)
{
    static const char *const names[] = {"---", "r--", "-w-", "rw-", "--x", "r-x", "-wx", "rwx"};

    return names[prot];
}

/* Reads or writes a byte of `page`; prints the result. */
static void access_page(unsigned long page, bool write)
{
    volatile unsigned char *at = memory + page * PAGE + 7;

    if (sigsetjmp(caught, 1)) {
        printf(" %s:signal %d code %d%s", write ? "write" : "read", got.si_signo, got.si_code,
               got.si_addr == (void *)at ? "" : " at a wrong address");
        return;
    }
    if (write) {
        *at = (unsigned char)(*at + 1);
        printf(" write:%d", *at);
    } else {
        printf(" read:%d", *at);
    }
}

/* read(2) and write(2): the kernel's accesses on behalf of the program. */
static void copy_page(unsigned long page)
{
    int pipes[2];

    if (pipe(pipes))
        die("pipe");
    ssize_t out = write(pipes[1], (void *)(memory + page * PAGE + 7), 1);
    printf(" copy out:%s", out < 0 ? strerrorname_np(errno) : "1");
    if (out == 1) {
        ssize_t in = read(pipes[0], (void *)(memory + page * PAGE + 9), 1);
        printf(" in:%s", in < 0 ? strerrorname_np(errno) : "1");
    }
    close(pipes[0]);
    close(pipes[1]);
}

static void change(unsigned long offset, unsigned long size, int prot)
{
    int failed = protect(offset, size, prot);

    printf(" protect(%lu, %lu, %s):%s", offset / PAGE, size, rights(prot & 7),
           failed ? strerrorname_np(errno) : "0");
}

/* From `first` to `second` to `third` rights: pages 1 written, 2 read, 3 untouched. */
static void rights_change(int first, int second, int third)
{
    fresh(PROT_READ | PROT_WRITE);
    printf("%s -> %s -> %s:", rights(first), rights(second), rights(third));
    access_page(1, true);
    access_page(2, false);
    change(0, 8 * PAGE, first);
    for (int i = 0; i < 2; i++) {
        change(PAGE, 3 * PAGE, i ? third : second);
        for (unsigned long page = 1; page <= 3; page++) {
            access_page(page, false);
            access_page(page, true);
        }
        copy_page(1);
    }
    access_page(4, true);
    change(0, SIZE - PAGE, PROT_READ | PROT_WRITE);
    for (unsigned long page = 0; page <= 5; page++)
        access_page(page, true);
    printf("\n");
}

static void refusals(void)
{
    fresh(PROT_READ | PROT_WRITE);
    printf("refusals:");
    change(0, 0, PROT_READ);
    change(0, 1, PROT_READ);
    access_page(0, true);
    access_page(1, true);
    if (!protect(1, PAGE, PROT_READ) || errno != EINVAL)
        printf(" misaligned:%s", strerrorname_np(errno));
    if (!protect(0, PAGE, 0x40) || errno != EINVAL)
        printf(" unknown right:%s", strerrorname_np(errno));
    change(SIZE - PAGE, PAGE, PROT_READ); /* a hole */
    access_page(PAGES - 1, false);
    change(0, SIZE - PAGE, PROT_READ | PROT_WRITE);
    access_page(0, true);
    printf("\n");
}

/* The same range back and forth, the bytes counted. */
static void back_and_forth(void)
{
    unsigned long sum = 0;

    fresh(PROT_READ | PROT_WRITE);
    printf("back and forth:");
    for (unsigned long i = 0; i < SIZE - PAGE; i++)
        memory[i] = (unsigned char)(i * 31);
    for (int i = 0; i < 3; i++) {
        change(0, SIZE / 2, PROT_READ);
        access_page(0, true);
        change(0, SIZE / 2, PROT_NONE);
        access_page(PAGES / 2 - 1, false);
        access_page(PAGES / 2, true);
        change(0, SIZE / 2, PROT_READ | PROT_WRITE);
        access_page(0, true);
        access_page(PAGES / 2 - 1, true);
    }
    for (unsigned long i = 0; i < SIZE - PAGE; i++)
        sum += memory[i];
    printf(" sum %lu\n", sum);
}

int main(int argc, char **argv)
{
    static const int all[] = {PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};

    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    attach(argc > 2 ? argv[2] : NULL);
    for (unsigned first = 0; first < 4; first++)
        for (unsigned second = 0; second < 4; second++)
            for (unsigned third = 0; third < 4; third++)
                rights_change(all[first], all[second], all[third]);
    refusals();
    back_and_forth();
    return 0;
}
