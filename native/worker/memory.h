/*
 * memory.h - getting memory and letting go of it.
 */
#ifndef MSHARE_WORKER_MEMORY_H
#define MSHARE_WORKER_MEMORY_H

#include "worker/worker.h"

int run_attach(struct worker *w, const struct arguments *args);
int run_map(struct worker *w, const struct arguments *args);
int run_shm(struct worker *w, const struct arguments *args);
int run_detach(struct worker *w, const struct arguments *args);
int run_hugepages(struct worker *w, const struct arguments *args);
int run_mprotect(struct worker *w, const struct arguments *args);
int run_watch(struct worker *w, const struct arguments *args);

#endif
