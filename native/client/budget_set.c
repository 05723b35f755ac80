/* budget_set.c - setting, inheriting and ending a budget of page tables; see budget_set.h. */
#define _GNU_SOURCE
#include "client/budget_set.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/budget.h"
#include "client/handover.h"
#include "client/reclaim.h"
#include "client/request.h"
#include "core/touched.h"
#include "msharefs.h"

static void push_mapped(struct attachment *att)
{
    uint64_t start = att->offset, stop;

    for (; touched_run(&att->mm, att->slot, &start, attachment_limit(att), &stop); start = stop)
        for (uint64_t span = start / PMD_SIZE; span * PMD_SIZE < stop; span++)
            budget_push(&att->budget, (uint32_t)span);
}

/* Reserves address space; memory comes with use. */
static uint8_t *reserve(uint64_t bytes, int prot)
{
    uint8_t *got = mmap(NULL, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (got == MAP_FAILED)
        return NULL;
    madvise(got, bytes, MADV_DONTDUMP);
    return got;
}

static int allocate_budget(struct attachment *att)
{
    struct budget *b = &att->budget;

    /* By the region's size: mremap(2) can make a window of adopted memory longer. */
    *b = (struct budget){.spans_bytes = att->mm.size / PMD_SIZE * sizeof(struct span)};
    b->reserved = reserve(2 * PMD_SIZE, PROT_NONE);
    b->spans = (struct span *)reserve(b->spans_bytes, PROT_READ | PROT_WRITE);
    b->scratch = (uint8_t *)(((uintptr_t)b->reserved + PMD_SIZE - 1) & ~(PMD_SIZE - 1));
    if (b->reserved && b->spans)
        return 0;
    budget_end(att);
    return -ENOMEM;
}

void budget_end(struct attachment *att)
{
    struct budget *b = &att->budget;

    if (b->spans)
        munmap(b->spans, b->spans_bytes);
    if (b->reserved)
        munmap(b->reserved, 2 * PMD_SIZE);
    *b = (struct budget){0};
}

static int check(uint64_t bytes)
{
    if (bytes && bytes < BUDGET_MIN_BYTES)
        return -EINVAL;
    if (bytes)
        reclaim_probe(); /* which a shadow may not */
    return 0;
}

int budget_set(struct attachment *att, uint64_t bytes)
{
    const int err = check(bytes);

    if (err)
        return err;
    if (att->served == BY_NOBODY)
        return -ESRCH;
    return has_shadow(att) ? request(att, REQUEST_BUDGET, bytes, 0)
                           : budget_apply(att, bytes, true);
}

int budget_apply(struct attachment *att, uint64_t bytes, bool mapped)
{
    struct budget *b = &att->budget;
    uint64_t spans = bytes / PAGE_SIZE;

    if (!bytes) {
        if (handover_end(att))
            return -ENOMEM;
        budget_end(att);
    } else if (!b->spans) {
        if (allocate_budget(att))
            return -ENOMEM;
        if (handover_end(att)) {
            budget_end(att);
            return -ENOMEM;
        }
        if (mapped)
            push_mapped(att);
    }
    b->asked = b->limit = spans < UINT32_MAX / 2 ? (uint32_t)spans : UINT32_MAX / 2;
    b->weighing = false;
    budget_publish(att);
    budget_trim(att);
    return 0;
}

void budget_forked(struct attachment *att)
{
    struct budget *b = &att->budget;
    const struct budget old = *b;

    if (!b->spans)
        return;
    madvise(b->spans, b->spans_bytes, MADV_DONTNEED); /* all are unused */
    reclaim_empty(b->scratch);                        /* the parent may have been using it */
    *b = (struct budget){
        .spans = old.spans,
        .spans_bytes = old.spans_bytes,
        .reserved = old.reserved,
        .scratch = old.scratch,
        .asked = old.asked,
        .limit = old.asked,
    };
    budget_publish(att);
}

/* As for mount(8): a number, perhaps with K, M or G for powers of 1024. */
static int parse(const char *text, uint64_t *bytes)
{
    static const char units[] = "KMGT";
    const char *unit;
    char *end;

    errno = 0;
    *bytes = strtoull(text, &end, 10);
    if (errno || *text < '0' || *text > '9')
        return -EINVAL;
    if (*end && (unit = strchr(units, toupper(*end)))) {
        unsigned shift = 10 * (unsigned)(unit - units + 1);

        if (*bytes > UINT64_MAX >> shift)
            return -EINVAL;
        *bytes <<= shift;
        end++;
    }
    return *end ? -EINVAL : 0;
}

int budget_start(struct attachment *att)
{
    const char *asked = getenv("MSHAREFS_PT_BUDGET");
    uint64_t bytes = att->mm.budget;
    int err = asked && *asked ? parse(asked, &bytes) : 0;

    if (!err)
        err = check(bytes);
    return err ? err : budget_apply(att, bytes, false);
}
