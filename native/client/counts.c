/* counts.c - a client's counters; see counts.h. */
#include "client/counts.h"

#include "core/trace.h"

static void link_quantum(struct attachment *att, uint64_t quantum)
{
    const uint64_t bit = 1ull << quantum % 64;

    if (att->linked[quantum / 64] & bit)
        return;
    att->linked[quantum / 64] |= bit;
    count_add(&counts_of(att)->links, 1);
    trace_link(&att->mm, trace_pid(&att->mm, att->slot), quantum * att->mm.quantum,
               att->mm.quantum);
}

bool counts_linked(const struct attachment *att, uint64_t offset)
{
    const uint64_t quantum = offset / att->mm.quantum;

    return att->linked[quantum / 64] >> quantum % 64 & 1;
}

void counts_fault(struct attachment *att, const struct fault *fault)
{
    struct mm_counters *counters = counts_of(att);

    if (fault->filled) {
        count_add(&counters->faults, 1);
        count_add(&counters->prefaulted, fault->filled - 1);
        trace_fault(&att->mm, trace_pid(&att->mm, att->slot), fault->offset,
                    fault->filled * PAGE_SIZE);
    }
    if (fault->beside)
        count_add(&counters->prefaulted, fault->beside);
    link_quantum(att, fault->offset / att->mm.quantum);
}

void counts_reached(struct attachment *att, uint64_t start, uint64_t end, uint64_t fresh)
{
    for (uint64_t at = start / att->mm.quantum; at <= (end - 1) / att->mm.quantum; at++)
        link_quantum(att, at);
    count_add(&counts_of(att)->materialised, fresh);
}
