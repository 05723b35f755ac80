/* prefill.c - see prefill.h. */
#include "server/prefill.h"

#include <errno.h>

#include "core/fault.h"
#include "core/slots.h"

int64_t mm_prefill(struct mm *mm, unsigned slot, uint64_t start, uint64_t end)
{
    int64_t filled = 0;

    for (uint64_t offset = start; offset < end; offset += PAGE_SIZE) {
        struct fault fault = {
            .offset = offset,
            .access = ACCESS_WRITE,
            .start = offset,
            .end = offset + PAGE_SIZE,
            .fill = 1,
            .limit = UINT64_MAX,
        };

        slot_enter(mm, slot);
        enum fault_verdict verdict = mm_fault(mm, slot, &fault);
        slot_leave(mm, slot);
        if (verdict != FAULT_MAP)
            return -EFAULT;
        filled += (int64_t)fault.filled;
    }
    return filled;
}
