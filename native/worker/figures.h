/*
 * figures.h - the cost of a command.
 */
#ifndef MSHARE_WORKER_FIGURES_H
#define MSHARE_WORKER_FIGURES_H

#include <sys/resource.h>

#include "worker/worker.h"

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

#endif
