/*
 * munmap_loop CPU OTHER: on CPU, maps a page of shared memory, touches it and unmaps it, while a
 * thread of the process spins on OTHER. It goes on until /proc/interrupts has counted a TLB
 * interrupt during munmap(2), and then prints how many times it took.
 */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TRIES 10000

static atomic_bool up;

static void pin(size_t cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        err(1, "sched_setaffinity");
}

static void *spin(void *cpu)
{
    pin(*(size_t *)cpu);
    atomic_store(&up, true);
    for (;;)
        atomic_load(&up);
    return NULL;
}

static unsigned long tlb_interrupts(void)
{
    FILE *file = fopen("/proc/interrupts", "re");
    char *line = NULL, *word, *rest;
    unsigned long sum = 0;
    size_t room = 0;

    if (!file)
        err(1, "/proc/interrupts");
    while (getline(&line, &room, file) > 0) {
        if (!strstr(line, "TLB:"))
            continue;
        strtok_r(line, ":", &rest);
        while ((word = strtok_r(NULL, " \n", &rest)))
            sum += strtoul(word, NULL, 10);
    }
    free(line);
    fclose(file);
    return sum;
}

int main(int argc, char **argv)
{
    size_t other = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
    pthread_t thread;

    if (argc != 3 || pthread_create(&thread, NULL, spin, &other))
        errx(1, "CPU OTHER");
    pin(strtoul(argv[1], NULL, 10));
    while (!atomic_load(&up))
        sched_yield();
    for (int i = 1; i <= TRIES; i++) {
        char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            err(1, "mmap");
        *memory = 1;
        const unsigned long before = tlb_interrupts();
        munmap(memory, 4096);
        if (tlb_interrupts() > before) {
            printf("%d\n", i);
            return 0;
        }
    }
    errx(1, "no TLB interrupt in %d munmaps", TRIES);
}
