/*
 * refused.c REGION: a file is mapped in the whole region, to be read only, but for its first block.
 * In each other block one thread loads, and then another stores, before the load is answered: so
 * the block is mapped between the fault of the store and its answer. Afterwards all stores are made
 * again. Exit status 0 if every store was refused.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <msharefs.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trap.h"

#define PAGE 4096ul
#define BLOCK (64ul << 10)

static uint8_t *base;
static uint64_t blocks;
static sem_t go;
static _Atomic int loader;
static _Atomic uint64_t loading;

static void *load(void *unused)
{
    loader = gettid();
    for (uint64_t i = 1; i < blocks; i++) {
        sem_wait(&go);
        loading = i + 1;
        (void)*(volatile uint8_t *)(base + i * BLOCK + PAGE);
    }
    return unused;
}

static bool stored(uint64_t block)
{
    volatile uint8_t *at = base + block * BLOCK;
    volatile bool done = false;
    struct trap trap;

    if (TRY(trap)) {
        *at = 1;
        done = true;
    } else {
        assert(trap.signo == SIGSEGV && trap.code == SEGV_ACCERR && trap.addr == (uintptr_t)at);
    }
    trap_current = NULL;
    return done;
}

static void read_task(int tid, const char *name, char text[512])
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/task/%d/%s", tid, name);
    const int fd = open(path, O_RDONLY);
    const ssize_t got = fd < 0 ? -1 : read(fd, text, 511);
    assert(got >= 0);
    text[got] = 0;
    close(fd);
}

/* All on one processor, and the library's thread when nobody else has anything to do. */
static void let_service_be_late(void)
{
    DIR *tasks = opendir("/proc/self/task");
    unsigned found = 0;
    cpu_set_t one;
    char name[512];

    CPU_ZERO(&one);
    CPU_SET((unsigned)sched_getcpu(), &one);
    for (struct dirent *entry; (entry = readdir(tasks));) {
        const int tid = atoi(entry->d_name);

        if (!tid)
            continue;
        sched_setaffinity(tid, sizeof one, &one);
        read_task(tid, "comm", name);
        if (strcmp(name, "mshare-service\n"))
            continue;
        found++;
        assert(!sched_setscheduler(tid, SCHED_IDLE, &(struct sched_param){0}));
    }
    closedir(tasks);
    assert(found == 1);
}

/* Waits until the load of a block has faulted. */
static void wait_for_load(uint64_t block)
{
    char stat[512];

    while (loading != block + 1)
        sched_yield();
    do
        read_task(loader, "stat", stat);
    while (strrchr(stat, ')')[2] == 'R' && !sched_yield());
}

int main(int argc, char **argv)
{
    int fd = open(argv[1], O_RDWR), passed = 0;
    struct stat status;
    pthread_t thread;

    assert(argc == 2 && fd >= 0 && !fstat(fd, &status));
    base = mshare_attach(fd, 0, 0, NULL, 0);
    assert(base != MAP_FAILED);
    blocks = (uint64_t)status.st_size / BLOCK;
    trap_install();
    assert(stored(0)); /* from now on the library has the file open for writing */
    sem_init(&go, 0, 0);
    assert(!pthread_create(&thread, NULL, load, NULL));
    let_service_be_late();
    for (uint64_t i = 1; i < blocks; i++) {
        sem_post(&go);
        wait_for_load(i);
        passed += stored(i);
    }
    pthread_join(thread, NULL);
    for (uint64_t i = 1; i < blocks; i++)
        passed += stored(i);
    return passed != 0;
}
