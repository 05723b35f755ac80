/*
 * worker.h - the common part of mshare-worker, one process of a demonstration or a
 * benchmark. main.c reads the commands; each group of them has its own file.
 */
#ifndef MSHARE_WORKER_H
#define MSHARE_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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
    int64_t value;      /* the result of the command, -1: none */
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

#endif
