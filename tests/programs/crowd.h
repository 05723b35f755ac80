/* crowd.h - threads of the actor, and the board they share with the test; see crowd.c. */
#ifndef CROWD_H
#define CROWD_H

#include <stdatomic.h>
#include <stdint.h>

/* Each phase has a number of its own; its last two bits say which kind it is. */
enum phase { STOP = 0, CHANGING = 1, THERE = 2, GONE = 3 };

struct seen {
    _Atomic uint64_t stored;  /* stores that went through */
    _Atomic uint64_t refused; /* stores that ended in SIGSEGV, SEGV_MAPERR */
    _Atomic uint64_t wrong;   /* stores that were refused in THERE or not in GONE; other signals */
    uint64_t pad[5];
};

struct board {
    _Alignas(64) _Atomic uint64_t phase;
    _Alignas(64) struct seen seen[];
};

struct job {
    struct board *board;
    struct seen *seen;
    uintptr_t start;
    uint64_t pages, stride, seed;
    uint64_t exact; /* holes: signals that were correct in every field */
};

struct board *board_at(int fd);
/* Starts threads that each do a copy of `job`, with a seed of their own. */
void crowd_start(unsigned count, void *(*work)(void *), const struct job *job);
uint64_t next_random(uint64_t *state);

#endif
