/*
 * around.c - how far a fault should look beyond its page.
 *
 * A fault costs two context switches, a further page a fraction of a
 * microsecond. But a page that is mapped for nothing costs that fraction, and an
 * entry that is filled for nothing is a lie about who touched the page. So:
 *
 *   sequential      runs of 2, 4, 8 ... pages, like readahead, and up to 32 MiB where
 *                   others have filled them: then one page in thousands faults.
 *                   From the third fault in a row on, a first touch fills entries
 *                   ahead, too, at most the region's fault_around: two neighbours may
 *                   be chance
 *   random, absent  the page alone: no entry is filled that nobody touched
 *   random, present the first fault in a 2 MiB span maps the present pages of its
 *                   128 KiB, which takes about as long as the fault itself; the
 *                   second maps those of its 512 KiB; the third those of the whole
 *                   span. A process that lives for one query mostly needs fewer.
 *                   The 4th, 8th ... fault maps the whole span again: others add
 *                   pages meanwhile, but most are mapped already, and looking at
 *                   them is not free
 *
 * With a fault_around of 0 a fault maps its own page and no other: what a process
 * has in its page tables is then what it has used (`msharefs lab bits`).
 */
#include "client/around.h"

#define SURE_PAGES 4u

/* How many bytes the first, second and third fault in a span look at. */
static const uint64_t reach[] = {FAULT_BLOCK, 4 * FAULT_BLOCK, PMD_SIZE};
#define REACHES (sizeof reach / sizeof *reach)

static void choose_run(struct around *around, struct fault *fault, uint64_t fault_around)
{
    uint64_t span_end = (fault->offset & ~(PMD_SIZE - 1)) + PMD_SIZE;

    if (around->pages < AHEAD_PAGES)
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

/* One bit for each block of the span that [start, end) covers. */
static uint32_t blocks(uint64_t start, uint64_t end)
{
    const uint64_t first = start % PMD_SIZE / FAULT_BLOCK, count = (end - start) / FAULT_BLOCK;

    return (uint32_t)(((1ull << count) - 1) << first);
}

static void choose_reach(struct around *around, struct fault *fault, bool touched)
{
    const uint64_t span = fault->offset / PMD_SIZE;
    struct recent *recent = recent_of(around, fault->offset);
    uint64_t bytes = PMD_SIZE;

    if (recent->span != span || !recent->faults)
        *recent = (struct recent){.span = (uint32_t)span,
                                  .faults = around->far ? REACHES - 1 : touched};
    const uint32_t before = recent->faults++;
    if (before < REACHES) {
        bytes = reach[before];
        fault->skip = recent->looked; /* mapping a mapped page again costs one call for each */
    } else if (recent->faults & before) {
        return; /* not the 4th, 8th ... */
    }
    fault->start = fault->offset & ~(bytes - 1);
    fault->end = fault->start + bytes;
    recent->looked |= blocks(fault->start, fault->end);
}

void around_choose(struct around *around, struct fault *fault, bool present, bool touched,
                   uint64_t fault_around)
{
    fault->start = fault->offset;
    fault->end = fault->offset + PAGE_SIZE;
    fault->skip = 0;
    fault->fill = 1;
    if (!fault_around)
        return;
    if (fault->offset == around->next && around->pages) {
        choose_run(around, fault, fault_around);
        return;
    }
    around->pages = 1;
    if (present)
        choose_reach(around, fault, touched);
}

void around_forget(struct around *around, uint64_t span)
{
    struct recent *recent = recent_of(around, span);

    if (recent->span == span / PMD_SIZE)
        recent->faults = 0;
}
