/*
 * budget.c - a client keeps a limited number of its own page tables.
 *
 * A program's real page tables are a cache of the shared ones (README.md), with one
 * table for each 2 MiB span; this is the cache's replacement policy. Which spans are
 * in use? Linux has no cheap answer for an unprivileged process: there are no accessed
 * bits in /proc/self/pagemap, clear_refs walks the whole process, and idle page tracking
 * is for root. We have only faults, so giving back is itself the sample: a span that is
 * in use comes back at once, by a fault that finds all its entries. Hence
 *
 *   queue       CLOCK: first in, first out, but a span with credit is passed over and
 *               loses one credit
 *   credit      a span had been in use if it came back before the budget's whole number
 *               of others went. It is then passed over once, and if it happens again 3
 *               times, 7, 15. So hot spans are sampled less and less often, and spans of
 *               a single pass flow through without pushing them out
 *   working set coming back costs time. If that is more than a LOSS_SHARE-th of the CPU
 *               time of the process, and not just for a moment, the working set is
 *               larger than the budget: the budget doubles, which `msharefs clients`
 *               shows
 *   shrinking   a budget that has grown is questioned: from time to time a sample is
 *               given back, and the budget loses the spans that do not return
 *               (working set estimation as in ESX: Waldspurger, OSDI 2002)
 *
 * Nothing is allocated here.
 */
#define _GNU_SOURCE
#include "client/budget.h"

#include <errno.h>

#include "client/around.h"
#include "client/attachments.h"
#include "client/clock.h"
#include "client/counts.h"
#include "client/handover.h"
#include "client/reader.h"
#include "client/reclaim.h"
#include "core/linger.h"
#include "core/trace.h"

enum span_state { SPAN_UNUSED, SPAN_MAPPED, SPAN_GONE };

#define PROVED_MAX 4u /* passed over 2^4 - 1 times */
/* The newest spans are not taken: their threads may not have run again yet. */
#define FRESH_SPANS 16u
/* The third fault in a span maps the rest of it (around.c). */
#define FAULTS_OWED 3u
#define LOST_FAULTS 64u /* after that many it is time to look at the clock */
#define LOSS_SHARE 16
/* The time that may be lost at once, when a program turns to other data, or the first time
 * that spans in use are taken. */
#define BURST_NS 10000000
/* The cost of a fault beside our own time: two switches of threads. */
#define SWITCH_NS 5000u
/* How many spans to try, to find one that can be given back. */
#define TRIES 8u
#define SAMPLE_MIN 8u /* spans; and at most a 64th of the budget, and SAMPLE_MAX */
#define SAMPLE_MAX 64u
#define PERIOD_MIN_MS 250u
#define PERIOD_MAX_MS 16000u
/* A program that has run for so long since a sample would have touched it again, and a program
 * that does not run needs nothing. One in between has had to wait for a processor. */
#define RAN_NS 50000000u
#define RESTED_NS 1000000u

/* Of the service thread, for all attachments. A shadow has only one. */
static _Atomic uint64_t all_answered;
static _Atomic bool any_grown;
static uint64_t look_ms; /* when budget_tick_all() next has something to do */

static uint64_t now_ms(void) { return clock_ns(CLOCK_MONOTONIC) / 1000000u; }

void budget_publish(const struct attachment *att)
{
    struct mm_slot *slot = &att->mm.slots[att->slot];

    atomic_store_explicit(&slot->budget, att->budget.limit, memory_order_relaxed);
    atomic_store_explicit(&slot->budget_asked, att->budget.asked, memory_order_relaxed);
    if (att->reader)
        reader_report(att);
}

/* The queue */

void budget_push(struct budget *b, uint32_t number)
{
    struct span *span = &b->spans[number];

    span->state = SPAN_MAPPED;
    span->next = 0;
    if (b->last)
        b->spans[b->last - 1].next = number + 1;
    else
        b->first = number + 1;
    b->last = number + 1;
    b->used++;
}

static uint32_t pop(struct budget *b)
{
    uint32_t number = b->first - 1;

    b->first = b->spans[number].next;
    if (!b->first)
        b->last = 0;
    b->used--;
    return number;
}

/* The next span to go: past those with credit, but not as far as the newest ones. */
static uint32_t victim(struct budget *b)
{
    for (uint32_t left = b->used; left > FRESH_SPANS; left--) {
        uint32_t number = pop(b);

        if (!b->spans[number].credit)
            return number;
        b->spans[number].credit--;
        budget_push(b, number);
    }
    return pop(b);
}

/* Gives one span back. NULL: none can go now. */
static struct span *evict(struct attachment *att)
{
    struct budget *b = &att->budget;

    for (unsigned tries = 0; tries < TRIES && b->used; tries++) {
        uint32_t number = victim(b);
        struct span *span = &b->spans[number];
        int err = handover_end_span(att, number);

        if (!err)
            err = reclaim_span(att, number * PMD_SIZE);

        if (err == -EBUSY) {
            budget_push(b, number);
            continue;
        }
        /* A span that cannot be given back no longer counts. */
        span->state = SPAN_UNUSED;
        span->owed = 0;
        if (err)
            continue;
        around_forget(&att->around, number * PMD_SIZE);
        count_add(&counts_of(att)->evicted, 1);
        trace_evict(&att->mm, trace_pid(&att->mm, att->slot), number * PMD_SIZE, PMD_SIZE);
        span->state = SPAN_GONE;
        span->turn = b->turn++;
        span->sample = 0;
        return span;
    }
    return NULL;
}

void budget_trim(struct attachment *att)
{
    while (att->budget.used > att->budget.limit && evict(att))
        ;
}

/* The working set */

static void start_looking(struct attachment *att)
{
    att->budget.since_ns = att->budget.seen_ns = clock_program_ns(att);
}

/* How many faults were answered in the time of clock_own_ns(). */
static uint64_t answered(const struct attachment *att)
{
    return has_shadow(att) ? att->budget.answered
                           : atomic_load_explicit(&all_answered, memory_order_relaxed);
}

static void grow(struct attachment *att)
{
    struct budget *b = &att->budget;
    struct mm_slot *slot = &att->mm.slots[att->slot];
    uint32_t all = (uint32_t)(att->length / PMD_SIZE + 1), more = 2 * b->limit;

    b->limit = more < all ? more : all;
    atomic_store_explicit(&slot->budget_grown,
                          atomic_load_explicit(&slot->budget_grown, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    b->period_ms = PERIOD_MIN_MS;
    b->due_ms = now_ms() + b->period_ms;
    b->sampled = 0;
    start_looking(att);
    /* The next look may be far away, if the last one found no budget or only idle ones. */
    if (!has_shadow(att) && b->due_ms < look_ms)
        look_ms = b->due_ms;
    any_grown = true;
    budget_publish(att);
}

/* Starts to compare our own time from now on with that of the program and us. */
static void start_weighing(struct attachment *att)
{
    struct budget *b = &att->budget;

    b->weighing = true;
    b->lost = 0;
    b->faults = answered(att);
    b->own_ns = clock_own_ns(att);
    b->all_ns = b->own_ns + clock_program_ns(att);
}

/* Compares the cost of coming back with all the time of the program and us meanwhile. Our own
 * time is divided among the faults that we answered. */
static void weigh(struct attachment *att)
{
    struct budget *b = &att->budget;
    const uint64_t now = clock_own_ns(att);
    const uint64_t own = now - b->own_ns;
    const uint64_t all = now + clock_program_ns(att) - b->all_ns;
    const uint64_t faults = answered(att) - b->faults;

    b->allowed_ns += (int64_t)(all / LOSS_SHARE);
    b->allowed_ns -= (int64_t)(own * b->lost / faults + b->lost * SWITCH_NS);
    if (b->allowed_ns > BURST_NS)
        b->allowed_ns = BURST_NS;
    if (b->allowed_ns < 0) {
        grow(att);
        b->allowed_ns = BURST_NS;
    }
    start_weighing(att);
}

static void came_back(struct attachment *att, struct span *span)
{
    struct budget *b = &att->budget;

    if (b->turn - span->turn > b->limit)
        span->proved = 0;
    else if (span->proved < PROVED_MAX)
        span->proved++;
    span->credit = (uint8_t)((1u << span->proved) - 1);
    span->owed = FAULTS_OWED;
    if (span->sample && span->sample == b->sample)
        b->returned++;
    count_add(&counts_of(att)->refaulted, 1);
}

void budget_fault(struct attachment *att, uint64_t offset, bool again)
{
    struct budget *b = &att->budget;

    if (has_shadow(att))
        b->answered++;
    else
        atomic_fetch_add_explicit(&all_answered, 1, memory_order_relaxed);
    if (!b->spans || offset >= att->mm.size) /* a window may be longer than its region */
        return;
    if (!b->weighing) {
        start_weighing(att);
        b->allowed_ns = BURST_NS;
    }

    struct span *span = &b->spans[offset / PMD_SIZE];
    if (span->state == SPAN_GONE)
        came_back(att, span);
    if (span->state != SPAN_MAPPED)
        budget_push(b, (uint32_t)(offset / PMD_SIZE));
    /* Faults that a smaller budget has caused say nothing about a larger one. */
    if (again && span->owed && b->used >= b->limit) {
        span->owed--;
        if (++b->lost >= LOST_FAULTS)
            weigh(att);
    }
    budget_trim(att);
}

/* Shrinking */

static void shrink(struct attachment *att, uint32_t spans)
{
    struct budget *b = &att->budget;

    b->limit = b->limit - b->asked > spans ? b->limit - spans : b->asked;
    b->period_ms = PERIOD_MIN_MS;
    budget_publish(att);
}

/* Judges the last sample and takes the next. */
static void sample(struct attachment *att)
{
    struct budget *b = &att->budget;
    uint32_t wanted = b->limit / 64;

    wanted = wanted < SAMPLE_MIN ? SAMPLE_MIN : wanted > SAMPLE_MAX ? SAMPLE_MAX : wanted;
    start_looking(att);
    if (b->used + wanted <= b->limit && !b->sampled) {
        shrink(att, wanted); /* so much is not in use */
        return;
    }
    if (b->sampled && b->returned <= b->sampled / 4)
        shrink(att, b->sampled - b->returned);
    else if (b->sampled && b->period_ms < PERIOD_MAX_MS)
        b->period_ms *= 2;
    b->sample++;
    b->sampled = b->returned = 0;
    while (b->limit > b->asked && b->sampled < wanted) {
        struct span *span = evict(att);

        if (!span)
            break;
        span->sample = b->sample;
        b->sampled++;
    }
}

/* Whether the program has run enough since then to show what is in use. */
static bool telling(struct attachment *att)
{
    struct budget *b = &att->budget;
    const uint64_t now = clock_program_ns(att), lately = now - b->seen_ns;

    b->seen_ns = now;
    return lately < RESTED_NS || now - b->since_ns >= RAN_NS;
}

static bool has_grown(const struct attachment *att)
{
    return att->live && att->budget.spans && att->budget.limit > att->budget.asked;
}

int budget_tick(struct attachment *att)
{
    struct budget *b = &att->budget;
    const uint64_t now = now_ms();

    if (!has_grown(att))
        return -1;
    if (now >= b->due_ms) {
        if (telling(att))
            sample(att);
        b->due_ms = now + b->period_ms;
    }
    return (int)(b->due_ms - now);
}

int budget_tick_all(void)
{
    uint64_t now = any_grown ? now_ms() : 0;

    if (!any_grown)
        return -1;
    if (now >= look_ms) {
        any_grown = false;
        look_ms = now + PERIOD_MAX_MS;
        for (unsigned i = 0; i < attachments_used; i++) {
            struct attachment *att = &attachments[i];

            attachment_lock(att);
            if (budget_tick(att) >= 0) {
                any_grown = true;
                look_ms = att->budget.due_ms < look_ms ? att->budget.due_ms : look_ms;
            }
            attachment_unlock(att);
        }
    }
    return any_grown ? (int)(look_ms - now) : -1;
}
