/*
 * instrumented.c - a program as a sanitizer wants it, or with large variables of its thread, that
 * uses shared memory with a hole in it: instrumented [REGION].
 *
 * The second half of REGION is a hole. Exits with 0 if all went as Linux has it; without REGION the
 * memory is a plain mapping with a guard behind it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "msharefs.h"

#ifndef VARIABLES
#define VARIABLES 64
#endif
#define HALF (2ul << 20)
#define PAGE 4096ul
/* The memory that is mapped next lies at the end of a gap of this size. */
#define GAP (64ul << 20)
#define FAULTS 64

static _Thread_local volatile char variables[VARIABLES];
static volatile char *memory;

static void must(int right, const char *what)
{
    if (right)
        return;
    fprintf(stderr, "instrumented: %s\n", what);
    exit(1);
}

static void map(const char *region)
{
    void *gap = mmap(NULL, GAP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    must(gap != MAP_FAILED && !munmap(gap, GAP), "a gap");
    if (region) {
        const int fd = open(region, O_RDWR);

        memory = mshare_attach(fd, 0, 0, NULL, 0);
        close(fd);
    } else {
        memory = mmap(NULL, 2 * HALF, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        must(!mprotect((char *)memory + HALF, HALF, PROT_NONE), "mprotect");
    }
    must(memory != MAP_FAILED, "map");
}

static void *work(void *unused)
{
    char *own = malloc(PAGE);

    memset(own, 1, PAGE);
    variables[VARIABLES - 1] = own[1];
    for (unsigned long page = 0; page < FAULTS; page++)
        memory[page * 2 * PAGE] = variables[VARIABLES - 1];
    free(own);
    return unused;
}

/* What a child that does that ends with. */
static int child(int reads_the_hole)
{
    int status = -1;
    const pid_t pid = fork();

    if (!pid) {
        for (unsigned long page = 0; page < FAULTS; page++)
            memory[(page * 2 + 1) * PAGE] = 2;
        _exit(reads_the_hole ? memory[HALF] : 0);
    }
    must(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
    return status;
}

int main(int argc, char **argv)
{
    pthread_t thread;

    map(argc > 1 ? argv[1] : NULL);
    work(NULL);
    must(!child(0), "a child");
    must(child(1), "a hole that can be read");
    must(!pthread_create(&thread, NULL, work, NULL), "pthread_create");
    must(!pthread_join(thread, NULL), "pthread_join");
    must(memory[PAGE] == 2, "what a child has stored");
    return 0;
}
