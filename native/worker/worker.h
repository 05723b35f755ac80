/*
 * worker.h - the parts of mshare-worker, one process of a demonstration or a
 * benchmark. worker.c reads the commands; each group of them has its own file.
 */
#ifndef MSHARE_WORKER_H
#define MSHARE_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

#define PAGE 4096u
#define PAGE_WORDS (PAGE / sizeof(uint64_t))
#define NUMBERS_MAX 4

enum backend { NOTHING, REGION, PLAIN, SYSV };

struct worker {
    enum backend backend;
    uint64_t *memory;
    uint64_t bytes;
    int fd; /* of `open`, for the system calls on a file; -1: none */
    /* the order in which touch visits pages */
    uint32_t *order;
    uint64_t order_count, order_room;
    /* of the command that runs */
    uint64_t pages, wrong, first_wrong;
    int64_t value;      /* what the command found, -1: nothing */
    const char *failed; /* the call that gave the error */
};

struct arguments {
    uint64_t number[NUMBERS_MAX];
    const char *text;
};

struct command {
    const char *name;
    unsigned numbers; /* then the text, if there is one: the rest of the line */
    bool text;
    int (*run)(struct worker *w, const struct arguments *args); /* 0 or -errno */
};

static inline int fail(struct worker *w, const char *call, int err)
{
    w->failed = call;
    return err;
}

/* worker/figures.c: what a command cost. */

struct figures {
    uint64_t ns;
    uint64_t vmpte_kb;
    struct rusage self, children;
};

/* Times of single rounds of a repeated command. */
struct rounds {
    uint64_t *ns;
    uint64_t count;
};

uint64_t now_ns(void);
/* Clock and faults are read closest to the command: before it last, after it first. */
int figures_before(struct figures *f);
int figures_after(struct figures *f);
void print_answer(const struct worker *w, const struct figures *before, const struct figures *after,
                  const struct rounds *rounds);

/* worker/memory.c: getting memory and letting go of it. */

int run_attach(struct worker *w, const struct arguments *args);
int run_map(struct worker *w, const struct arguments *args);
int run_shm(struct worker *w, const struct arguments *args);
int run_detach(struct worker *w, const struct arguments *args);
int run_hugepages(struct worker *w, const struct arguments *args);
int run_mprotect(struct worker *w, const struct arguments *args);
int run_watch(struct worker *w, const struct arguments *args);

/* worker/pattern.c: filling memory and checking it. */

int run_fill(struct worker *w, const struct arguments *args);
int run_verify(struct worker *w, const struct arguments *args);

/* worker/touch.c: accesses to be timed. */

int run_order(struct worker *w, const struct arguments *args);
int run_touch(struct worker *w, const struct arguments *args);
int run_sweep(struct worker *w, const struct arguments *args);
int run_fork(struct worker *w, const struct arguments *args);

/* worker/calls.c: system calls to be timed. */

int run_open(struct worker *w, const struct arguments *args);
int run_create(struct worker *w, const struct arguments *args);
int run_unmap(struct worker *w, const struct arguments *args);
int run_protect(struct worker *w, const struct arguments *args);
int run_punch(struct worker *w, const struct arguments *args);
int run_make(struct worker *w, const struct arguments *args);
int run_stat(struct worker *w, const struct arguments *args);
int run_rename(struct worker *w, const struct arguments *args);
int run_remove(struct worker *w, const struct arguments *args);

#endif
