/*
 * unserved.c - attaching where nobody can be made who takes the faults: it is memory all the same.
 *
 *   unserved vfork FILE    a child of vfork(2) attaches, and its parent uses that
 *   unserved newpid FILE   after unshare(CLONE_NEWPID), by the process itself and by a child
 *
 * FILE: a region, mapped from end to end, of 16 pages at least. Says "ok".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

static int file;
static size_t size;

static volatile char *attach(void)
{
    volatile char *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

    if (base == MAP_FAILED)
        _exit(10);
    return base;
}

static void detach(volatile char *base)
{
    if (munmap((void *)base, size))
        _exit(11);
}

static int check(pid_t child)
{
    int status;

    return waitpid(child, &status, 0) == child ? status : -1;
}

static int in_vfork(void)
{
    volatile char *volatile base = NULL, *mine;
    pid_t child = vfork();

    if (!child) {
        base = attach();
        base[PAGE] = 1;
        _exit(0);
    }
    if (check(child) || base[PAGE] != 1)
        return 20;
    mine = attach(); /* the parent has its thread, or its shadow */
    mine[2 * PAGE] = 2;
    child = vfork();
    if (!child) {
        detach(base);
        base = attach();
        base[3 * PAGE] = 3;
        _exit(0);
    }
    if (check(child) || mine[3 * PAGE] != 3 || base[2 * PAGE] != 2)
        return 21;
    base[4 * PAGE] = 4;
    detach(base);
    if (mine[4 * PAGE] != 4)
        return 22;
    child = fork();
    if (!child) {
        mine[5 * PAGE] = 5;
        _exit(mine[4 * PAGE] != 4);
    }
    if (check(child) || mine[5 * PAGE] != 5)
        return 23;
    detach(mine);
    return 0;
}

static int in_newpid(void)
{
    volatile char *base;
    pid_t child;

    if (unshare(CLONE_NEWPID))
        return 30;
    base = attach();
    base[PAGE] = 1;
    child = fork();
    if (!child) { /* process 1 of the new namespace */
        volatile char *mine = attach();

        base[2 * PAGE] = 2;
        mine[3 * PAGE] = 3;
        _exit(mine[PAGE] != 1 || mine[2 * PAGE] != 2);
    }
    if (check(child) || base[2 * PAGE] != 2 || base[3 * PAGE] != 3)
        return 31;
    detach(base);
    return 0;
}

int main(int argc, char **argv)
{
    struct stat status;
    int failed;

    file = argc == 3 ? open(argv[2], O_RDWR) : -1;
    if (file < 0 || fstat(file, &status))
        return 2;
    size = (size_t)status.st_size;
    alarm(20);
    failed = strcmp(argv[1], "vfork") ? in_newpid() : in_vfork();
    puts(failed ? "wrong" : "ok");
    return failed;
}
