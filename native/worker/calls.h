/*
 * calls.h - system calls to be timed.
 */
#ifndef MSHARE_WORKER_CALLS_H
#define MSHARE_WORKER_CALLS_H

#include "worker/worker.h"

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
