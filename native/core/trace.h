/*
 * trace.h - what happens to a region, told at the moment it happens, in two ways:
 *
 *   probes   USDT, provider `msharefs`: for tracers of Linux's such as bpftrace(8) and perf(1). A
 *            probe that nobody has attached to is one `nop`. Arguments: the region's number, pid,
 *            offset, bytes
 *   a ring   in `.mm`: for machines where those may not be used. Nothing is written unless somebody
 *            has asked for it in the last few seconds (trace_for()). The ring is lossy: who reads
 *            too late is told how many records are gone
 *
 * Nobody waits for anybody: a record that is overwritten while it is written, or whose writer has
 * died, does not agree with its own check, and counts as lost.
 */
#ifndef MSHARE_TRACE_H
#define MSHARE_TRACE_H

#include "core/mm.h"

#if __has_include(<sys/sdt.h>)
#include <sys/sdt.h>
#else /* built without probes: the ring is there all the same */
#define DTRACE_PROBE4(provider, name, ...) ((void)0)
#endif

/* The events: who tells it, and what `offset` and `bytes` are. */
#define TRACE_EVENTS(X)                                                               \
    X(fault)   /* client: a first touch; where, and the entries that it has filled */ \
    X(link)    /* client: the first use of a quantum, by this process; the quantum */ \
    X(refused) /* client: an access that ends in a signal; the page */                \
    X(evict)   /* client: a span given back to stay within a budget; the span */      \
    X(revoke)  /* client: pages taken back because the server has asked; the range */ \
    X(attach)  /* server: the part of the region */                                   \
    X(fork)    /* server: the same, of a child that has inherited it */               \
    X(detach)  /* server: the same; also of a process that has ended */               \
    X(map)     /* server: CREATE_MAPPING; the range */                                \
    X(unmap)   /* server: the range */                                                \
    X(protect) /* server: the range */                                                \
    X(advise)  /* server: the range */

#define TRACE_KIND(name) TRACE_##name,
enum trace_kind { TRACE_EVENTS(TRACE_KIND) TRACE_KINDS };
#undef TRACE_KIND

struct trace_event {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t offset;  /* region offset, bytes */
    uint64_t bytes;
    uint32_t pid;  /* in the server's pid namespace, once it knows the process; 0: nobody's doing */
    uint32_t kind; /* enum trace_kind */
};

static inline bool trace_wanted(const struct mm *mm)
{
    return mm->writable &&
           __builtin_expect(
               atomic_load_explicit(&mm->header->trace_until, memory_order_relaxed) != 0, 0);
}

/* Adds a record to the ring. Precondition: trace_wanted(). Async-signal-safe. */
void trace_write(struct mm *mm, enum trace_kind kind, uint32_t pid, uint64_t offset,
                 uint64_t bytes);

/* trace_fault(mm, pid, offset, bytes) and so on, one for each event. */
#define TRACE_FUNCTION(name)                                                                      \
    static inline void trace_##name(struct mm *mm, uint32_t pid, uint64_t offset, uint64_t bytes) \
    {                                                                                             \
        DTRACE_PROBE4(msharefs, name, mm->header->region, pid, offset, bytes);                    \
        if (trace_wanted(mm))                                                                     \
            trace_write(mm, TRACE_##name, pid, offset, bytes);                                    \
    }
TRACE_EVENTS(TRACE_FUNCTION)
#undef TRACE_FUNCTION

/* The process of a slot, as events have it. */
static inline uint32_t trace_pid(const struct mm *mm, unsigned slot)
{
    return (uint32_t)atomic_load_explicit(&mm->slots[slot].state, memory_order_relaxed);
}

/* For the server: an event by its number. */
void trace_note(struct mm *mm, enum trace_kind kind, uint32_t pid, uint64_t offset, uint64_t bytes);
/* What an event is called; NULL: there is no such kind. */
const char *trace_name(unsigned kind);
/* The ring is written for the next `ns` nanoseconds. 0: no more. */
void trace_for(struct mm *mm, uint64_t ns);
/* In place of a number: the next record. */
#define TRACE_FROM_NOW UINT64_MAX
/* Copies the records from number *next on, at most `max`, and moves *next on. Adds to *lost how
 * many of them are gone. Returns how many there are. */
uint64_t trace_read(const struct mm *mm, uint64_t *next, struct trace_event *events, uint64_t max,
                    uint64_t *lost);

#endif
