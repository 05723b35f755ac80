/*
 * victim.h - a process that pages are taken away from.
 */
#ifndef MSHARE_WORKER_VICTIM_H
#define MSHARE_WORKER_VICTIM_H

#include "worker/worker.h"

int run_spin(struct worker *w, const struct arguments *args);
int run_lost(struct worker *w, const struct arguments *args);
int run_still(struct worker *w, const struct arguments *args);
int run_dontneed(struct worker *w, const struct arguments *args);
int run_pageout(struct worker *w, const struct arguments *args);

#endif
