/*
 * hammer.c - a process that keeps storing into a region until it is told to end.
 *
 *   hammer PATH SELF THREADS [fork]
 *
 * Thread T of process SELF (0, 1, ...) counts up the word SELF * 64 + T of every
 * page, page after page. With `fork`, a child does a round and ends, and the next
 * child goes on. A refused store is counted and tried again. Each line on
 * stdin is answered with "STORES REFUSALS OTHER_SIGNALS", all since the start.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "msharefs.h"

#define PAGE 4096u
#define PAGE_WORDS (PAGE / sizeof(uint64_t))
#define THREADS_MAX 8u

struct counts {
    _Atomic uint64_t stores, refusals, others;
};

static struct counts *counts; /* shared with the children */
static volatile uint64_t *words;
static size_t pages;
static unsigned self, threads;
static _Thread_local sigjmp_buf caught;

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (number == SIGSEGV && info->si_code == SEGV_ACCERR)
        atomic_fetch_add(&counts->refusals, 1);
    else
        atomic_fetch_add(&counts->others, 1);
    siglongjmp(caught, 1);
}

static void store(volatile uint64_t *word)
{
    while (sigsetjmp(caught, 1))
        usleep(1000); /* let the others have the processor */
    *word = *word + 1;
    atomic_fetch_add(&counts->stores, 1);
}

static void round_of(unsigned thread)
{
    for (size_t page = 0; page < pages; page++)
        store(words + page * PAGE_WORDS + self * 64 + thread);
}

static void *hammer(void *number)
{
    for (;;)
        round_of((unsigned)(uintptr_t)number);
    return NULL;
}

static void *fork_children(void *unused)
{
    (void)unused;
    for (;;) {
        pid_t child = fork();

        if (child == 0) {
            round_of(0);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    struct stat status;
    char line[64];
    int fd = open(argv[1], O_RDWR);

    if (argc < 4 || fd < 0 || fstat(fd, &status))
        return 2;
    self = (unsigned)atoi(argv[2]);
    threads = (unsigned)atoi(argv[3]);
    pages = (size_t)status.st_size / PAGE;
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    counts = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    words = mshare_attach(fd, 0, 0, NULL, 0);
    if (threads > THREADS_MAX || counts == MAP_FAILED || words == MAP_FAILED)
        return 1;
    for (unsigned i = 0; i < threads; i++) {
        pthread_t thread;

        pthread_create(&thread, NULL, argc > 4 ? fork_children : hammer, (void *)(uintptr_t)i);
    }
    while (fgets(line, sizeof line, stdin)) {
        printf("%lu %lu %lu\n", counts->stores, counts->refusals, counts->others);
        fflush(stdout);
    }
    kill(0, SIGKILL); /* the children, too */
    return 0;
}
