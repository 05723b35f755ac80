/*
 * around.c - how far a fault should look beyond its page.
 *
 * A fault costs two context switches, a further page a fraction of a
 * microsecond. But a page mapped for nothing costs that fraction, and an entry
 * filled for nothing is a lie about who touched what. So:
 *
 *   sequential      runs of 2, 4, 8 ... pages, as readahead does. From the third
 *                   fault in a row on, a first touch fills entries ahead too, at
 *                   most the region's fault_around: two neighbours may be chance
 *   random, absent  the page alone: nothing is filled that nobody touched
 *   random, present the first fault in a 2 MiB span maps what is present in its
 *                   64 KiB, as the kernel's own fault-around does; the second
 *                   shows that the span is in use, and maps all that is present.
 *                   So do the 4th, 8th ...: others add pages meanwhile, but most
 *                   are mapped already, and looking at them is not free
 */
#include "attachment.h"
#include "fault.h"

#define RANDOM_PAGES 16ull
#define SURE_PAGES 4u

static void choose_run(struct around *around, struct fault *fault, uint64_t fault_around)
{
    uint64_t span_end = (fault->offset & ~(PMD_SIZE - 1)) + PMD_SIZE;

    if (around->pages < SPAN_PAGES)
        around->pages *= 2;
    fault->end = fault->offset + around->pages * PAGE_SIZE;
    if (fault->end > span_end)
        fault->end = span_end;
    if (around->pages >= SURE_PAGES)
        fault->fill = around->pages < fault_around ? around->pages : fault_around;
}

static struct recent *recent_of(struct around *around, uint64_t span)
{
    return &around->recent[span / PMD_SIZE % AROUND_SPANS];
}

static void choose_block(struct around *around, struct fault *fault, bool touched)
{
    uint64_t span = fault->offset & ~(PMD_SIZE - 1);
    struct recent *recent = recent_of(around, span);

    if (recent->span != span / PMD_SIZE || !recent->faults)
        *recent = (struct recent){.span = (uint32_t)(span / PMD_SIZE), .faults = touched};
    recent->faults++;
    if (recent->faults == 1) {
        fault->start = fault->offset & ~(RANDOM_PAGES * PAGE_SIZE - 1);
        fault->end = fault->start + RANDOM_PAGES * PAGE_SIZE;
    } else if ((recent->faults & (recent->faults - 1)) == 0) {
        fault->start = span;
        fault->end = span + PMD_SIZE;
    }
}

void around_choose(struct around *around, struct fault *fault, bool present, bool touched,
                   uint64_t fault_around)
{
    fault->start = fault->offset;
    fault->end = fault->offset + PAGE_SIZE;
    fault->fill = 1;
    if (fault->offset == around->next && around->pages) {
        choose_run(around, fault, fault_around);
        return;
    }
    around->pages = 1;
    if (present)
        choose_block(around, fault, touched);
}

void around_forget(struct around *around, uint64_t span)
{
    struct recent *recent = recent_of(around, span);

    if (recent->span == span / PMD_SIZE)
        recent->faults = 0;
}
