/* trace.c - the ring of events; see trace.h. */
#include "core/trace.h"

#include <sched.h>
#include <time.h>

#include "core/linger.h"

/* A record that is being written is there in a moment, unless its writer has died. */
#define WAITS 100

static const char *const names[] = {
#define TRACE_NAME(name) [TRACE_##name] = #name,
    TRACE_EVENTS(TRACE_NAME)
#undef TRACE_NAME
};

/* A copy of a record. */
struct copy {
    uint64_t number, time_ns, offset, bytes, who, check;
};

static uint64_t check_of(const struct copy *record)
{
    /* Parts of two records must not agree by chance: their numbers differ, and so do their sums. */
    return (record->number * 0x9e3779b97f4a7c15ull) ^ record->time_ns ^ (record->offset << 1) ^
           (record->bytes << 3) ^ (record->who << 7);
}

void trace_write(struct mm *mm, enum trace_kind kind, uint32_t pid, uint64_t offset, uint64_t bytes)
{
    struct copy made = {
        .time_ns = clock_ns(CLOCK_MONOTONIC),
        .offset = offset,
        .bytes = bytes,
        .who = (uint64_t)pid << 32 | kind,
    };

    if (made.time_ns >= atomic_load_explicit(&mm->header->trace_until, memory_order_relaxed))
        return; /* whoever asked has gone */
    made.number = atomic_fetch_add_explicit(&mm->header->traced, 1, memory_order_relaxed) + 1;
    made.check = check_of(&made);

    struct mm_record *to = &mm->records[(made.number - 1) % TRACE_RECORDS];

    atomic_store_explicit(&to->number, made.number, memory_order_relaxed);
    atomic_store_explicit(&to->time_ns, made.time_ns, memory_order_relaxed);
    atomic_store_explicit(&to->offset, made.offset, memory_order_relaxed);
    atomic_store_explicit(&to->bytes, made.bytes, memory_order_relaxed);
    atomic_store_explicit(&to->who, made.who, memory_order_relaxed);
    atomic_store_explicit(&to->check, made.check, memory_order_relaxed);
}

void trace_note(struct mm *mm, enum trace_kind kind, uint32_t pid, uint64_t offset, uint64_t bytes)
{
#define TRACE_CASE(name)                      \
    case TRACE_##name:                        \
        trace_##name(mm, pid, offset, bytes); \
        break;
    switch (kind) {
        TRACE_EVENTS(TRACE_CASE)
    case TRACE_KINDS:
        break;
    }
#undef TRACE_CASE
}

const char *trace_name(unsigned kind) { return kind < TRACE_KINDS ? names[kind] : NULL; }

void trace_for(struct mm *mm, uint64_t ns)
{
    atomic_store(&mm->header->trace_until, ns ? clock_ns(CLOCK_MONOTONIC) + ns : 0);
}

/* Whether record `number`, counted from 0, is there whole. */
static bool copy_record(const struct mm *mm, uint64_t number, struct copy *found)
{
    const struct mm_record *from = &mm->records[number % TRACE_RECORDS];

    *found = (struct copy){
        .number = atomic_load_explicit(&from->number, memory_order_relaxed),
        .time_ns = atomic_load_explicit(&from->time_ns, memory_order_relaxed),
        .offset = atomic_load_explicit(&from->offset, memory_order_relaxed),
        .bytes = atomic_load_explicit(&from->bytes, memory_order_relaxed),
        .who = atomic_load_explicit(&from->who, memory_order_relaxed),
        .check = atomic_load_explicit(&from->check, memory_order_relaxed),
    };
    return found->number == number + 1 && found->check == check_of(found) &&
           (uint32_t)found->who < TRACE_KINDS;
}

uint64_t trace_read(const struct mm *mm, uint64_t *next, struct trace_event *events, uint64_t max,
                    uint64_t *lost)
{
    const uint64_t end = atomic_load(&mm->header->traced);
    const uint64_t oldest = end > TRACE_RECORDS ? end - TRACE_RECORDS : 0;
    unsigned waits = WAITS;
    uint64_t used = 0;

    if (*next > end) /* TRACE_FROM_NOW, or a client has scribbled */
        *next = end;
    if (*next < oldest) {
        *lost += oldest - *next;
        *next = oldest;
    }
    for (; *next < end && used < max; ++*next) {
        struct copy found;
        bool whole = copy_record(mm, *next, &found);

        for (; !whole && waits; waits--) {
            sched_yield();
            whole = copy_record(mm, *next, &found);
        }
        if (whole)
            events[used++] = (struct trace_event){
                .time_ns = found.time_ns,
                .offset = found.offset,
                .bytes = found.bytes,
                .pid = (uint32_t)(found.who >> 32),
                .kind = (uint32_t)found.who,
            };
        else
            ++*lost;
    }
    return used;
}
