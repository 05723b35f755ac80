/* range.c - a range of addresses, and the windows in it; see range.h. */
#include "preload/range.h"

#include "client/attachments.h"
#include "client/private.h"

bool preload_concerns(const void *addr, size_t length, struct range *range)
{
    range->start = (uintptr_t)addr;
    range->end = (range->start + length + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    return range->start % PAGE_SIZE == 0 && range->start < range->end &&
           range->end - range->start >= length && attachments_near(range->start, range->end);
}

static struct attachment *region_over(uint64_t start, uint64_t end)
{
    struct attachment *att;

    while ((att = attachment_over(start, end)) && is_adopted(att))
        start = attachment_end(att);
    return att;
}

struct attachment *preload_window(uint64_t addr)
{
    struct attachment *att = attachment_over(addr, addr + 1);

    return att && private_gone(att, addr & ~(PAGE_SIZE - 1), (addr | (PAGE_SIZE - 1)) + 1) ? NULL
                                                                                           : att;
}

/* Where a window is the same from `start` on: there, or gone. */
static uint64_t run_end(const struct attachment *att, uint64_t start, uint64_t end, bool *gone)
{
    const uint64_t limit = attachment_offset(att, end);
    uint64_t at = attachment_offset(att, start);
    int what;

    at = unshared_run(&att->unshared, at, limit, &what);
    *gone = what == UNSHARED_GONE;
    while (at < limit) {
        const uint64_t stop = unshared_run(&att->unshared, at, limit, &what);

        if (*gone != (what == UNSHARED_GONE))
            break;
        at = stop;
    }
    return (uintptr_t)attachment_at(att, at);
}

int preload_parts(struct range range,
                  int (*part)(struct attachment *att, struct range range, void *arg), void *arg)
{
    int err = 0;

    while (!err && range.start < range.end) {
        struct attachment *att = region_over(range.start, range.end);
        struct range next = {range.start, range.end};

        if (att && (uintptr_t)att->base > range.start) {
            next.end = (uintptr_t)att->base;
            att = NULL;
        } else if (att && attachment_end(att) < range.end) {
            next.end = attachment_end(att);
        }
        if (att && att->unshared.count) {
            bool gone;

            next.end = run_end(att, next.start, next.end, &gone);
            att = gone ? NULL : att;
        }
        err = part(att, next, arg);
        range.start = next.end;
    }
    return err;
}
