/* actor.h - the parts of the actor; see actor.c. */
#ifndef ACTOR_H
#define ACTOR_H

#include <stdint.h>

#include "trap.h"

#define PAGE 4096ul
#define WORDS (PAGE / sizeof(uint64_t))

/* Answers the current command; `fd` (-1: none) goes along. */
void reply(int fd, const char *format, ...) __attribute__((format(printf, 2, 3)));
void reply_errno(void);
void reply_signal(const struct trap *trap);

/* crowd.c: threads that run until they are told to stop. */
void crowd_hammer(const uint64_t *arg);
void crowd_gaze(const uint64_t *arg);
void crowd_flood(const uint64_t *arg);
void crowd_holes(const uint64_t *arg);
void crowd_join(const uint64_t *arg);

/* echo.c: threads that know the contents of their memory; code. */
void echo_count(const uint64_t *arg);
void echo_call(const uint64_t *arg);

/* churn.c: accesses to more memory than a budget of page tables covers. */
void churn_budget(const uint64_t *arg);
void churn_stamp(const uint64_t *arg);
void churn_visit(const uint64_t *arg);
void churn_play(const uint64_t *arg);
void churn_add(const uint64_t *arg);
void churn_poke(const uint64_t *arg);

#endif
