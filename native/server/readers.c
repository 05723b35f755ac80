/* readers.c - see readers.h. */
#define _GNU_SOURCE
#include "server/readers.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "core/fault.h"
#include "core/slots.h"
#include "core/touched.h"
#include "core/trace.h"

/* What one answer lets a reader map beyond its span. */
#define AHEAD_BYTES (32ull << 20)

int readers_claim(struct mm *mm, uint32_t pid, uint64_t start_time, uint64_t base, uint32_t prot,
                  uint32_t way, uint64_t offset, uint64_t bytes)
{
    if ((offset | bytes) % mm->quantum || !bytes || bytes > mm->size || offset > mm->size - bytes)
        return -EINVAL;
    const int slot = slot_claim(mm, slot_process(pid, 0), start_time);

    if (slot < 0)
        return slot;
    mm_set_part(&mm->slots[slot], base, offset, bytes);
    mm->slots[slot].prot = (uint8_t)prot;
    mm->slots[slot].way = (uint8_t)way;
    return slot;
}

int readers_find(struct mm *mm, uint32_t pid, uint64_t start_time, uint64_t base)
{
    for (unsigned i = 0; i < slots_high(mm); i++) {
        const struct mm_slot *slot = &mm->slots[i];

        if (atomic_load(&slot->state) == slot_process(pid, 0) && slot->start_time == start_time &&
            slot->base == base) {
            slot_settle(mm, i);
            return (int)i;
        }
    }
    return -ENOENT;
}

void readers_figures(struct mm *mm, unsigned slot, const struct figures *figures)
{
    struct mm_slot *to = &mm->slots[slot];

    if (slot >= MM_SLOTS)
        return;
    /* An answer of an earlier server may have been lost, but not the entries that it filled. */
    mm_raise(&to->counters.faults, figures->faults);
    mm_raise(&to->counters.prefaulted, figures->prefaulted);
    atomic_store(&to->counters.links, figures->links);
    atomic_store(&to->counters.materialised, figures->materialised);
    atomic_store(&to->counters.segv, figures->segv);
    atomic_store(&to->counters.evicted, figures->evicted);
    atomic_store(&to->counters.refaulted, figures->refaulted);
    atomic_store(&to->budget, figures->budget);
    atomic_store(&to->budget_asked, figures->budget_asked);
    atomic_store(&to->budget_grown, figures->budget_grown);
    atomic_store(&to->poisoned, (uint8_t)figures->poisoned);
    atomic_store(&to->unshared, figures->unshared);
}

/* Whether the range that is asked for is one that a fault may have. */
static bool fits(const struct fault *fault)
{
    const uint64_t span = fault->offset & ~(PMD_SIZE - 1);

    if ((fault->offset | fault->start | fault->end | fault->limit) % PAGE_SIZE ||
        fault->start > fault->offset || fault->end <= fault->offset)
        return false;
    return fault->vma.object ? fault->end - fault->start <= fault_block(&fault->vma)
                             : fault->start >= span && fault->end <= span + PMD_SIZE;
}

static enum fault_verdict fill(struct mm *mm, unsigned slot, int mem_fd, struct fault *fault,
                               const struct fault_ask *ask)
{
    enum fault_verdict verdict = fault_look(mm, fault);
    uint64_t ahead = ask->ahead;

    if (verdict != FAULT_MAP)
        return verdict;
    if (fault->vma.object != ask->object) /* the reader has looked before a change */
        return FAULT_WAIT;
    if (!fits(fault))
        return FAULT_BROKEN;
    verdict = fault_fill(mm, slot, fault);
    if (verdict == FAULT_MAP && !fault->vma.object && !ask->present &&
        fault_make_pages(fault, mem_fd))
        verdict = FAULT_BROKEN;
    if (verdict != FAULT_MAP)
        return verdict;
    ahead = ahead < fault->end + AHEAD_BYTES ? ahead : fault->end + AHEAD_BYTES;
    ahead = ahead < fault->vma.end ? ahead : fault->vma.end;
    touched_mark(mm, slot, fault->start, (ahead > fault->end ? ahead : fault->end) - fault->start);
    return verdict;
}

/* How many pages the reader is about to map. */
static uint64_t pages_of(const struct fault *fault)
{
    uint64_t pages = 0;

    if (fault->vma.object) {
        const uint64_t end = fault->end < fault->limit ? fault->end : fault->limit;

        return fault->start < end ? (end - fault->start) / PAGE_SIZE : 0;
    }
    for (unsigned i = 0; i < SPAN_PAGES / 64; i++)
        pages += (uint64_t)__builtin_popcountll(fault->present[i]);
    return pages;
}

/* A record for the ring, which the reader cannot write. Its probes are in its own process. */
static void record(struct mm *mm, unsigned slot, enum trace_kind kind, uint64_t offset,
                   uint64_t bytes)
{
    if (trace_wanted(mm))
        trace_write(mm, kind, trace_pid(mm, slot), offset, bytes);
}

/* Counts as the reader will. It tells its own figures with the next question. */
static void count(struct mm *mm, unsigned number, enum fault_verdict verdict,
                  const struct fault *fault, const struct fault_ask *ask)
{
    struct mm_slot *slot = &mm->slots[number];
    struct mm_counters *counters = &slot->counters;

    if (verdict == FAULT_MAP) {
        count_add(&counters->faults, fault->filled != 0);
        count_add(&counters->prefaulted, fault->beside + (fault->filled ? fault->filled - 1 : 0));
        count_add(&counters->links, ask->links != 0);
        count_add(&counters->materialised, pages_of(fault));
        if (fault->filled)
            record(mm, number, TRACE_fault, fault->offset, fault->filled * PAGE_SIZE);
        if (ask->links)
            record(mm, number, TRACE_link, fault->offset & ~(mm->quantum - 1), mm->quantum);
    } else if (verdict != FAULT_WAIT) {
        count_add(&counters->segv, 1);
        record(mm, number, TRACE_refused, fault->offset, PAGE_SIZE);
        atomic_store(&slot->poisoned, atomic_load(&slot->poisoned) + 1);
    }
}

void readers_fault(struct mm *mm, unsigned slot, int mem_fd, const struct fault_ask *ask,
                   struct fault_told *told)
{
    struct fault fault = {
        .offset = ask->offset,
        .access = ACCESS_READ,
        .start = ask->start,
        .end = ask->end,
        .skip = ask->skip,
        .fill = ask->fill >= 1 && ask->fill <= SPAN_PAGES ? ask->fill : 1,
        .limit = ask->limit,
    };

    readers_figures(mm, slot, &ask->figures);
    slot_enter(mm, slot);
    const enum fault_verdict verdict = fill(mm, slot, mem_fd, &fault, ask);
    count(mm, slot, verdict, &fault, ask);
    slot_leave(mm, slot);
    *told = (struct fault_told){
        .start = fault.start,
        .end = fault.end,
        .filled = fault.filled,
        .beside = fault.beside,
        .vma = fault.vma,
        .epoch = atomic_load(&mm->header->epoch),
        .verdict = (uint32_t)verdict,
    };
    memcpy(told->present, fault.present, sizeof told->present);
}
