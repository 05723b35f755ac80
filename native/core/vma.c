/*
 * vma.c - VMA sets: sorted arrays, published whole.
 *
 *   before    AAAAAAAA  BBBB        replace [s, e) by N:
 *                 s       e
 *   after     AAAANNNNNNNNBB        A and B keep their outer parts
 *
 *   before    AAAAAAAABBBB          protect [s, e)
 *                 s     e
 *   after     AAAAaaaabbBB          and back again: AAAAAAAABBBB
 *
 * A reader finds its snapshot by the epoch (area = epoch & 1) and may use it
 * until it leaves the epoch; the writer refills an area only after a grace
 * period (slots.c).
 */
#include "core/vma.h"

#include <errno.h>

const struct mm_vma *vma_snapshot(const struct mm *mm, uint64_t epoch, uint64_t *used)
{
    uint64_t count = mm->header->vmas_used[epoch & 1];

    if (count > MM_VMAS_AREA)
        return NULL;
    *used = count;
    return mm->vmas[epoch & 1];
}

/* Only an object has 2 MiB pages, and whole ones. */
static bool sane(const struct mm_vma *vma)
{
    const uint64_t page = vma->flags & VMA_HUGE ? PMD_SIZE : PAGE_SIZE;

    return vma->start < vma->end && (vma->start | vma->end) % page == 0 &&
           (vma->object || !(vma->flags & VMA_HUGE));
}

int vma_find(const struct mm *mm, uint64_t offset, struct mm_vma *vma)
{
    uint64_t epoch = atomic_load_explicit(&mm->header->epoch, memory_order_acquire);
    uint64_t low = 0, used;
    const struct mm_vma *set = vma_snapshot(mm, epoch, &used);

    if (!set)
        return -EUCLEAN;
    uint64_t high = used;
    while (low < high) { /* the first that ends above offset */
        uint64_t middle = low + (high - low) / 2;

        if (set[middle].end > offset)
            high = middle;
        else
            low = middle + 1;
    }
    if (low == used)
        return -ENOENT;
    *vma = set[low];
    if (offset >= vma->end || vma->end > mm->size || !sane(vma))
        return -EUCLEAN;
    return offset < vma->start ? -ENOENT : 0;
}

/* Two VMAs that are adjoining parts of one mapping: same object, same rights. */
static bool mergeable(const struct mm_vma *a, const struct mm_vma *b)
{
    return a->end == b->start && a->flags == b->flags && a->object == b->object &&
           a->serial == b->serial && a->offset + (a->end - a->start) == b->offset;
}

struct set {
    struct mm_vma *vmas;
    uint64_t used, max;
};

static int append(struct set *set, struct mm_vma vma)
{
    if (vma.start >= vma.end)
        return 0;
    if (set->used && mergeable(&set->vmas[set->used - 1], &vma)) {
        set->vmas[set->used - 1].end = vma.end;
        return 0;
    }
    if (set->used == set->max)
        return -ENOMEM;
    set->vmas[set->used++] = vma;
    return 0;
}

static struct mm_vma part(const struct mm_vma *vma, uint64_t start, uint64_t end)
{
    struct mm_vma cut = *vma;

    cut.start = vma->start > start ? vma->start : start;
    cut.end = vma->end < end ? vma->end : end;
    if (cut.start < cut.end)
        cut.offset = vma->offset + (cut.start - vma->start);
    return cut;
}

int64_t vma_mark_busy(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                      struct mm_vma *to, uint64_t max)
{
    struct set set = {.vmas = to, .max = max};
    int err = 0;

    for (uint64_t i = 0; !err && i < used; i++) {
        struct mm_vma inside = part(&from[i], start, end);

        inside.flags |= VMA_BUSY;
        err = append(&set, part(&from[i], 0, start));
        err = err ? err : append(&set, inside);
        err = err ? err : append(&set, part(&from[i], end, UINT64_MAX));
    }
    return err ? err : (int64_t)set.used;
}

int64_t vma_replace(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                    const struct mm_vma *insert, struct mm_vma *to, uint64_t max)
{
    struct set set = {.vmas = to, .max = max};
    uint64_t i = 0;
    int err = 0;

    for (; !err && i < used && from[i].start < start; i++)
        err = append(&set, part(&from[i], 0, start));
    if (!err && insert)
        err = append(&set, *insert);
    for (i = i ? i - 1 : 0; !err && i < used; i++)
        if (from[i].end > end)
            err = append(&set, part(&from[i], end, UINT64_MAX));
    return err ? err : (int64_t)set.used;
}

int64_t vma_flag(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                 uint32_t clear, uint32_t set_flags, struct mm_vma *to, uint64_t max)
{
    struct set set = {.vmas = to, .max = max};
    uint64_t covered = start;
    int err = 0;

    for (uint64_t i = 0; !err && i < used; i++) {
        struct mm_vma inside = part(&from[i], start, end);

        if (inside.start < inside.end) {
            if (inside.start != covered)
                return -ENOMEM;
            covered = inside.end;
            inside.flags = (inside.flags & ~clear) | set_flags;
        }
        err = append(&set, part(&from[i], 0, start));
        if (!err)
            err = append(&set, inside);
        if (!err)
            err = append(&set, part(&from[i], end, UINT64_MAX));
    }
    if (!err && covered != end)
        err = -ENOMEM;
    return err ? err : (int64_t)set.used;
}

int64_t vma_protect(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                    uint32_t flags, struct mm_vma *to, uint64_t max)
{
    return vma_flag(from, used, start, end, VMA_PROT, flags, to, max);
}

uint64_t vma_end_busy(const struct mm_vma *from, uint64_t used, bool drop, struct mm_vma *to)
{
    struct set set = {.vmas = to, .max = used};

    for (uint64_t i = 0; i < used; i++) {
        struct mm_vma vma = from[i];

        if (drop && vma.flags & VMA_BUSY)
            continue;
        vma.flags &= ~(uint32_t)VMA_BUSY;
        append(&set, vma); /* there are no more than before: it fits */
    }
    return set.used;
}
