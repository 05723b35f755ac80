/*
 * worker.c - mshare-worker: one process of a demonstration or a benchmark.
 *
 * Commands come in on stdin, a line each. Every command is answered by one line
 * of JSON on stdout, so whoever runs many workers can start all at once and wait
 * for all. The worker ends when its stdin does.
 *
 *   attach PATH         attach the region at PATH, to read and write
 *   map BYTES PATH      map BYTES of a plain file: what a region is compared with
 *   fill SEED BYTES     write SEED's pattern into every page of the first BYTES
 *   verify SEED BYTES   read them all and compare
 *   report              nothing but the figures
 *   detach              let go of the region or file
 *   quit                end; no answer
 *
 * An answer, figures as [before, after] of the command:
 *
 *   {"ok":true,"ns":51,"minflt":[90,91],"majflt":[0,0],"user_us":[..],
 *    "system_us":[..],"vmpte_kb":[40,44],"pages":1,"wrong":0,"first_wrong":0}
 *   {"ok":false,"errno":22,"error":"mshare_attach: Invalid argument"}
 *
 * `pages` is how many were visited; `wrong` and `first_wrong` (a page number)
 * say what verify found. Before its answer a long command tells how far it is:
 * {"progress":BYTES}, bytes done since the last such line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "msharefs.h"

#define PAGE 4096u
#define PAGE_WORDS (PAGE / sizeof(uint64_t))
/* Pages between two progress lines: some ten a second, few enough to cost nothing. */
#define SPAN_PAGES 16384u
#define NUMBERS_MAX 2

enum backend { NOTHING, REGION, PLAIN };

struct worker {
    enum backend backend;
    uint64_t *memory;
    uint64_t bytes;
    /* the command that runs */
    uint64_t pages, wrong, first_wrong;
    const char *failed; /* the call that gave the error */
};

struct figures {
    uint64_t ns;
    uint64_t vmpte_kb;
    struct rusage usage;
};

struct arguments {
    uint64_t number[NUMBERS_MAX];
    const char *path;
};

struct command {
    const char *name;
    unsigned numbers; /* then the path, if there is one: the rest of the line */
    bool path;
    int (*run)(struct worker *w, const struct arguments *args); /* 0 or -errno */
};

/* ---- figures ---- */

/* Page tables of this process in kB, as the kernel tells it. No stdio: a buffer
 * from malloc() would be part of what is measured. */
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

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Clock and faults are read closest to the command: before it last, after it first. */
static int figures_before(struct figures *f)
{
    int err = read_vmpte(&f->vmpte_kb);

    getrusage(RUSAGE_SELF, &f->usage); /* all threads, the library's too */
    f->ns = now_ns();
    return err;
}

static int figures_after(struct figures *f)
{
    f->ns = now_ns();
    getrusage(RUSAGE_SELF, &f->usage);
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

static void print_answer(const struct worker *w, const struct figures *a, const struct figures *b)
{
    printf("{\"ok\":true,\"ns\":%" PRIu64 ",", b->ns - a->ns);
    print_pair("minflt", (uint64_t)a->usage.ru_minflt, (uint64_t)b->usage.ru_minflt);
    print_pair("majflt", (uint64_t)a->usage.ru_majflt, (uint64_t)b->usage.ru_majflt);
    print_pair("user_us", micros(a->usage.ru_utime), micros(b->usage.ru_utime));
    print_pair("system_us", micros(a->usage.ru_stime), micros(b->usage.ru_stime));
    print_pair("vmpte_kb", a->vmpte_kb, b->vmpte_kb);
    printf("\"pages\":%" PRIu64 ",\"wrong\":%" PRIu64 ",\"first_wrong\":%" PRIu64 "}\n", w->pages,
           w->wrong, w->first_wrong);
}

/* ---- memory ---- */

static int fail(struct worker *w, const char *call, int err)
{
    w->failed = call;
    return err;
}

/* The region stays attached, and the file mapped, without its descriptor. */
static int open_file(struct worker *w, const char *path, uint64_t *size)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (w->backend != NOTHING) {
        if (fd >= 0)
            close(fd);
        return fail(w, "something is attached already", -EBUSY);
    }
    if (fd < 0)
        return fail(w, "open", -errno);
    if (fstat(fd, &st)) {
        int err = -errno;
        close(fd);
        return fail(w, "fstat", err);
    }
    *size = (uint64_t)st.st_size;
    return fd;
}

static int hold(struct worker *w, enum backend backend, void *memory, uint64_t bytes,
                const char *call)
{
    if (memory == MAP_FAILED)
        return fail(w, call, -errno);
    w->backend = backend;
    w->memory = memory;
    w->bytes = bytes;
    return 0;
}

static int run_attach(struct worker *w, const struct arguments *args)
{
    uint64_t size;
    int fd = open_file(w, args->path, &size);

    if (fd < 0)
        return fd;
    void *memory = mshare_attach(fd, NULL, PROT_READ | PROT_WRITE, MAP_SHARED);
    int err = hold(w, REGION, memory, size, "mshare_attach");
    close(fd);
    return err;
}

static int run_map(struct worker *w, const struct arguments *args)
{
    uint64_t bytes = args->number[0], size;
    int fd = open_file(w, args->path, &size);

    if (fd < 0)
        return fd;
    int err = bytes > size ? fail(w, "map: more than the file has", -EINVAL) : 0;
    if (!err) {
        void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        err = hold(w, PLAIN, memory, bytes, "mmap");
    }
    close(fd);
    return err;
}

static int run_detach(struct worker *w, const struct arguments *args)
{
    int failed = 0;

    (void)args;
    switch (w->backend) {
    case NOTHING:
        return fail(w, "nothing is attached", -EINVAL);
    case REGION:
        failed = mshare_detach(w->memory);
        break;
    case PLAIN:
        failed = munmap(w->memory, w->bytes);
        break;
    }
    if (failed)
        return fail(w, "detach", -errno);
    w->backend = NOTHING;
    return 0;
}

/* ---- the pattern ---- */

/* Words of a page that hold the pattern: both ends, and the middle. */
static const unsigned places[] = {0, PAGE_WORDS / 3, PAGE_WORDS * 2 / 3, PAGE_WORDS - 1};
#define PLACES (sizeof places / sizeof *places)

/* Different for each seed, page and place (the finisher of SplitMix64), so that a
 * page at a wrong address is found, as is a page of an earlier run. */
static uint64_t pattern(uint64_t seed, uint64_t page, unsigned place)
{
    uint64_t x = seed + (page * PLACES + place + 1) * 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void fill_page(struct worker *w, uint64_t seed, uint64_t page)
{
    for (unsigned i = 0; i < PLACES; i++)
        w->memory[page * PAGE_WORDS + places[i]] = pattern(seed, page, i);
}

static void verify_page(struct worker *w, uint64_t seed, uint64_t page)
{
    for (unsigned i = 0; i < PLACES; i++) {
        if (w->memory[page * PAGE_WORDS + places[i]] == pattern(seed, page, i))
            continue;
        if (!w->wrong++)
            w->first_wrong = page;
        return;
    }
}

static int each_page(struct worker *w, const struct arguments *args,
                     void (*visit)(struct worker *, uint64_t, uint64_t))
{
    uint64_t seed = args->number[0], bytes = args->number[1], told = 0;

    if (w->backend == NOTHING)
        return fail(w, "nothing is attached", -EINVAL);
    if (bytes % PAGE || bytes > w->bytes)
        return fail(w, "not a number of pages that is attached", -EINVAL);
    for (w->pages = 0; w->pages < bytes / PAGE; w->pages++) {
        if (w->pages - told == SPAN_PAGES) {
            printf("{\"progress\":%u}\n", SPAN_PAGES * PAGE);
            fflush(stdout);
            told = w->pages;
        }
        visit(w, seed, w->pages);
    }
    return 0;
}

static int run_fill(struct worker *w, const struct arguments *args)
{
    return each_page(w, args, fill_page);
}

static int run_verify(struct worker *w, const struct arguments *args)
{
    return each_page(w, args, verify_page);
}

static int run_report(struct worker *w, const struct arguments *args)
{
    (void)w, (void)args;
    return 0;
}

/* ---- commands ---- */

static const struct command commands[] = {
    {"attach", 0, true, run_attach},   {"map", 1, true, run_map},
    {"fill", 2, false, run_fill},      {"verify", 2, false, run_verify},
    {"report", 0, false, run_report},  {"detach", 0, false, run_detach},
};

/* Finds the command in `line` and takes its arguments apart; NULL: no such line. */
static const struct command *parse(char *line, struct arguments *args)
{
    size_t length = strcspn(line, " \n");
    const struct command *command = NULL;
    char *rest = line + length;

    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strlen(commands[i].name) == length && !memcmp(commands[i].name, line, length))
            command = &commands[i];
    if (!command)
        return NULL;
    for (unsigned i = 0; i < command->numbers; i++) {
        char *end;
        errno = 0;
        args->number[i] = strtoull(rest, &end, 10);
        if (end == rest || errno || !strchr(" \n", *end))
            return NULL;
        rest = end;
    }
    rest += *rest == ' ';
    rest[strcspn(rest, "\n")] = 0;
    args->path = rest;
    return (*rest != 0) == command->path ? command : NULL;
}

static void obey(struct worker *w, char *line)
{
    struct arguments args = {0};
    struct figures before, after;
    const struct command *command = parse(line, &args);
    int err = -EINVAL;

    w->pages = w->wrong = w->first_wrong = 0;
    w->failed = "/proc/self/status";
    if (command)
        err = figures_before(&before);
    else
        w->failed = "no such command";
    if (!err)
        err = command->run(w, &args);
    if (!err)
        err = figures_after(&after);
    if (err)
        printf("{\"ok\":false,\"errno\":%d,\"error\":\"%s: %s\"}\n", -err, w->failed, strerror(-err));
    else
        print_answer(w, &before, &after);
    fflush(stdout);
}

int main(void)
{
    struct worker w = {.backend = NOTHING};
    char *line = NULL;
    size_t room = 0;

    while (getline(&line, &room, stdin) > 0 && strcmp(line, "quit\n"))
        obey(&w, line);
    free(line);
    return 0;
}
