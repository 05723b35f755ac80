/*
 * budget.h - how much of its own page tables a client keeps for an attachment.
 * Internal to the client library; the policy is in budget.c, how it
 * is set in budget_set.c, the giving back in reclaim.c.
 */
#ifndef MSHARE_BUDGET_H
#define MSHARE_BUDGET_H

#include <stdbool.h>

#include "core/layout.h"

struct attachment;

/* A 2 MiB span of the region, which takes one page table while it is mapped. */
struct span {
    uint32_t next;   /* in the queue: number + 1; 0: it is the last */
    uint32_t turn;   /* budget.turn when it was given back */
    uint8_t state;   /* enum span_state */
    uint8_t proved;  /* how often in a row it came back soon: known to be in use */
    uint8_t credit;  /* times that it is passed over when a victim is looked for */
    uint8_t owed;    /* faults to come that the giving back has caused */
    uint32_t sample; /* budget.sample when it was given back to see what happens; 0: not so */
    uint16_t handed_from, handed_to; /* pages that are handed over (handover.c); equal: none */
};

struct budget {
    struct span *spans; /* one a span of the region; memory only where used. NULL: no budget */
    uint64_t spans_bytes;
    uint8_t *reserved, *scratch; /* 2 MiB of address space at a multiple of that */
    uint32_t first, last;        /* the queue of mapped spans: number + 1; 0: empty */
    uint32_t used;               /* spans in it */
    uint32_t handed;             /* spans with pages that are handed over, all in the queue */
    uint32_t asked, limit;       /* spans; limit >= asked */
    uint32_t turn;               /* spans given back so far, modulo 2^32 */
    /* What coming back costs, since the last look at the clocks. */
    bool weighing;
    uint64_t lost;           /* faults it has caused */
    uint64_t faults;         /* all that were answered by then */
    uint64_t own_ns, all_ns; /* CPU time by then: of the service thread, of the process */
    int64_t allowed_ns;      /* may still be lost before the budget grows */
    uint32_t sample, sampled, returned; /* number of the last sample, spans in it, and back */
    uint64_t period_ms, due_ms;         /* between samples; when the next is due */
    uint64_t since_ns, seen_ns;         /* CPU time of the program: then, or as it grew; lately */
};

/* Sets the budget of an attachment, in bytes; 0: none. `mapped`: spans may be mapped
 * already. Call with att->lock held. -EINVAL: less than BUDGET_MIN_BYTES. -ENOMEM. */
int budget_set(struct attachment *att, uint64_t bytes, bool mapped);
/* The budget that a new attachment is to have: MSHAREFS_PT_BUDGET, or else the
 * region's. -EINVAL: the variable does not hold a size. */
int budget_start(struct attachment *att);
/* In a child of fork(), whose window has no page mapped yet and whose slot is new. */
void budget_forked(struct attachment *att);
void budget_end(struct attachment *att);

/* Call at the end of every answered fault, outside of epochs: the span of `offset`
 * may be mapped from now on. `again`: the page was there already, it is no first
 * touch. May take other spans away. */
void budget_fault(struct attachment *att, uint64_t offset, bool again);

/* Does what is due for budgets that have grown. Returns the milliseconds until
 * it is to be called again, -1: not on account of this. Only on the service
 * thread, without a lock held. */
int budget_tick(void);

/* For budget_set.c. */

/* Puts a span into the queue. */
void budget_push(struct budget *b, uint32_t number);
/* Gives back as many as there are too many, if they can be had. */
void budget_trim(struct attachment *att);
/* Shows the budget to those who look. */
void budget_publish(const struct attachment *att);

/* reclaim.c */

/* How this kernel frees a table; looks once a process. */
void reclaim_probe(void);
/* Takes the span at region offset `start` out of the real page tables, and frees its
 * table. Data, protection and poison are as before for whoever touches it again.
 * -EBUSY: not just now; other errors: as long as the window is as it is, never. */
int reclaim_span(struct attachment *att, uint64_t start);
/* Leaves budget.scratch reserved and unreadable, as reclaim_span() wants it. */
void reclaim_empty(uint8_t *scratch);

#endif
