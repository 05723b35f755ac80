/* range.c - a range of addresses, and the windows in it; see range.h. */
#include "preload/range.h"

#include "client/attachments.h"

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
        err = part(att, next, arg);
        range.start = next.end;
    }
    return err;
}
