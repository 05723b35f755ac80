/* worker/figures.c - the cost of a command: clock, faults, processor time, VmPTE. */
#define _GNU_SOURCE
#include "worker/figures.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Page tables of this process in kB, as the kernel counts them. Without stdio: a buffer
 * from malloc() would be measured too. */
static int read_vmpte(uint64_t *kb)
{
    char text[8192];
    size_t used = 0;
    ssize_t got;
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return -errno;
    while (used < sizeof text - 1 && (got = read(fd, text + used, sizeof text - 1 - used)) > 0)
        used += (size_t)got;
    close(fd);
    text[used] = 0;
    const char *line = strstr(text, "\nVmPTE:");
    if (!line)
        return -ENOENT;
    *kb = strtoull(line + strlen("\nVmPTE:"), NULL, 10);
    return 0;
}

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int figures_before(struct figures *f)
{
    int err = read_vmpte(&f->vmpte_kb);

    getrusage(RUSAGE_CHILDREN, &f->children);
    getrusage(RUSAGE_SELF, &f->self); /* all threads, the library's too */
    f->ns = now_ns();
    return err;
}

int figures_after(struct figures *f)
{
    f->ns = now_ns();
    getrusage(RUSAGE_SELF, &f->self);
    getrusage(RUSAGE_CHILDREN, &f->children);
    return read_vmpte(&f->vmpte_kb);
}

static uint64_t micros(struct timeval t)
{
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_usec;
}

static void print_pair(const char *name, uint64_t before, uint64_t after)
{
    printf("\"%s\":[%" PRIu64 ",%" PRIu64 "],", name, before, after);
}

static int by_value(const void *left, const void *right)
{
    const uint64_t *a = left, *b = right;

    return (*a > *b) - (*a < *b);
}

/* Nearest rank; `ns` is sorted. */
static void print_quantile(const struct rounds *rounds, unsigned percent)
{
    printf("\"p%u\":%" PRIu64 ",", percent, rounds->ns[(rounds->count - 1) * percent / 100]);
}

static void print_rounds(const struct rounds *rounds)
{
    qsort(rounds->ns, rounds->count, sizeof *rounds->ns, by_value);
    printf("\"each_ns\":{");
    print_quantile(rounds, 50);
    print_quantile(rounds, 90);
    print_quantile(rounds, 99);
    printf("\"max\":%" PRIu64 "},", rounds->ns[rounds->count - 1]);
}

void print_answer(const struct worker *w, const struct figures *before, const struct figures *after,
                  const struct rounds *rounds)
{
    const struct rusage *a = &before->self, *b = &after->self;
    const struct rusage *ca = &before->children, *cb = &after->children;

    printf("{\"ok\":true,\"ns\":%" PRIu64 ",", after->ns - before->ns);
    print_pair("minflt", (uint64_t)(a->ru_minflt + ca->ru_minflt),
               (uint64_t)(b->ru_minflt + cb->ru_minflt));
    print_pair("majflt", (uint64_t)(a->ru_majflt + ca->ru_majflt),
               (uint64_t)(b->ru_majflt + cb->ru_majflt));
    print_pair("user_us", micros(a->ru_utime) + micros(ca->ru_utime),
               micros(b->ru_utime) + micros(cb->ru_utime));
    print_pair("system_us", micros(a->ru_stime) + micros(ca->ru_stime),
               micros(b->ru_stime) + micros(cb->ru_stime));
    print_pair("vmpte_kb", before->vmpte_kb, after->vmpte_kb);
    if (rounds)
        print_rounds(rounds);
    if (w->value >= 0)
        printf("\"value\":%" PRId64 ",", w->value);
    printf("\"pages\":%" PRIu64 ",\"wrong\":%" PRIu64 ",\"first_wrong\":%" PRIu64 "}\n", w->pages,
           w->wrong, w->first_wrong);
}
