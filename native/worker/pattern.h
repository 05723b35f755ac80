/*
 * pattern.h - filling memory and checking it.
 */
#ifndef MSHARE_WORKER_PATTERN_H
#define MSHARE_WORKER_PATTERN_H

#include "worker/worker.h"

int run_fill(struct worker *w, const struct arguments *args);
int run_verify(struct worker *w, const struct arguments *args);

#endif
