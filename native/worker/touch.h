/*
 * touch.h - accesses to be timed.
 */
#ifndef MSHARE_WORKER_TOUCH_H
#define MSHARE_WORKER_TOUCH_H

#include "worker/worker.h"

int run_order(struct worker *w, const struct arguments *args);
int run_touch(struct worker *w, const struct arguments *args);
int run_sweep(struct worker *w, const struct arguments *args);
int run_fork(struct worker *w, const struct arguments *args);

#endif
