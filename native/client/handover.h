/*
 * handover.h - runs of pages that Linux serves without us. Internal to the client library.
 */
#ifndef MSHARE_HANDOVER_H
#define MSHARE_HANDOVER_H

#include <stdbool.h>

#include "core/layout.h"

struct attachment;
struct fault;

/* Each run may split a mapping of the process in two. */
#define HANDED_MAX 256u
/* Under a budget each span is a run of its own. */
#define HANDED_SPANS_MAX 4096u

/* Without a budget (which keeps what is handed over with its spans). Region offsets; ranges
 * neither overlap nor touch. */
struct handed {
    struct handed_run {
        uint64_t start, end;
    } runs[HANDED_MAX];
    unsigned count;
    uint64_t searched; /* how far handover_search() has come */
};

/* After a fault that found its page there: hands over the run of pages around it that are
 * all there, and wakes who waits in it. False: it was not worth it, or not possible; the
 * page is to be made reachable as ever. Call inside the epoch of the fault. */
bool handover(struct attachment *att, const struct fault *fault);
/* Leaves what is handed over out of what a fault looks at. */
void handover_clip(const struct attachment *att, struct fault *fault);
/* Before fork(2): hands over runs of adopted memory without waiting for a fault in them, so
 * that a child has them from the begin. Looks at a part of the tables each time. */
void handover_search(struct attachment *att);
/* Watches adopted memory, but for what is handed over: in a forked child by its parent, and
 * counted as the child's own. 0 or -errno. */
int handover_inherit(struct attachment *att);
/* Watches again all that is handed over; what is mapped there stays mapped. 0 or -errno. */
int handover_end(struct attachment *att);
/* The same for one 2 MiB span of an attachment with a budget. */
int handover_end_span(struct attachment *att, uint32_t number);

#endif
