/*
 * audit.c - the invariants of a whole region, checked.
 *
 *   frames in use == frames reachable from the PGD     (none lost)
 *   bytes the frame area takes == 4096 * frames in use (none dirty when free)
 *   every present leaf lies in a VMA, with its address, its size and no more rights
 *   VMAs are sorted, disjoint, page aligned and inside the region; 2 MiB aligned
 *     where their pages are
 */
#include "core/audit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/frames.h"
#include "core/pagetable.h"
#include "core/vma.h"

struct audit {
    struct mm_audit *found;
    uint8_t *reached; /* one bit for each frame */
};

/* A file's pages of 2 MiB, which the processes that map it without us have (server/seen.c). */
static bool may_be_huge(const struct mm_vma *vma)
{
    return vma->flags & VMA_HUGE || (vma->flags & VMA_HUGEPAGE && !vma->object);
}

static int count_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct audit *audit = walk->arg;
    uint64_t value = atomic_load(entry);
    uint64_t offset = addr - HOST_BASE;
    struct mm_vma vma;

    if (!value)
        return 0;
    audit->found->leaves++;
    if (vma_find(walk->mm, offset, &vma) || offset + entry_span(level) > vma.end)
        audit->found->stray++;
    else if (!(value & ENTRY_USER) || !(value & ENTRY_PRESENT) != !(vma.flags & VMA_PROT) ||
             !(value & ENTRY_PRESENT) != !!(value & ENTRY_PROTNONE) ||
             (value & ENTRY_ADDR) != (vma.object ? OBJECTS_BASE : DATA_BASE) + offset ||
             !(level ? may_be_huge(&vma) : !(vma.flags & VMA_HUGE)) ||
             ((value & ENTRY_RW) && !(vma.flags & VMA_WRITE)) ||
             (!(value & ENTRY_NX) && !(vma.flags & VMA_EXEC)))
        audit->found->bad++;
    return 0;
}

static int count_table(struct walk *walk, _Atomic uint64_t *entry, uint64_t frame, unsigned level,
                       uint64_t addr)
{
    struct audit *audit = walk->arg;

    (void)entry, (void)addr;
    audit->found->tables[level]++;
    audit->reached[frame / 8] |= (uint8_t)(1u << frame % 8);
    return 0;
}

static int count_bad(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct audit *audit = walk->arg;

    (void)entry, (void)level, (void)addr;
    audit->found->bad++;
    return 0;
}

static int reach(struct mm *mm, struct audit *audit)
{
    struct walk walk = {
        .mm = mm,
        .leaf = count_leaf,
        .table = count_table,
        .bad = count_bad,
        .filled = true,
        .arg = audit,
    };

    audit->reached = calloc(1, mm->frames_max / 8 + 1);
    if (!audit->reached)
        return -ENOMEM;
    audit->reached[0] = 1; /* the PGD */
    audit->found->tables[3] = 1;
    return walk_range(&walk, HOST_BASE, mm->host_end);
}

static bool reached(const struct audit *audit, uint64_t frame)
{
    return audit->reached[frame / 8] & 1u << frame % 8;
}

static bool unaligned(const struct mm_vma *vma)
{
    uint64_t page = vma->flags & VMA_HUGE ? PMD_SIZE : PAGE_SIZE;

    return (vma->start | vma->end) % page || (vma->flags & VMA_HUGE && !vma->object);
}

static uint64_t wrong_vmas(const struct mm *mm)
{
    uint64_t used, wrong = 0, last = 0;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);

    if (!set)
        return 1;
    for (uint64_t i = 0; i < used; last = set[i++].end)
        wrong += set[i].start < last || set[i].start >= set[i].end || set[i].end > mm->size ||
                 unaligned(&set[i]);
    return wrong;
}

int mm_audit(struct mm *mm, struct mm_audit *found)
{
    struct audit audit = {.found = found};

    *found = (struct mm_audit){.vmas = wrong_vmas(mm)};
    int err = reach(mm, &audit);
    for (uint64_t i = 0, high = frames_high(mm); !err && i < high; i++) {
        uint64_t word = atomic_load_explicit(&mm->words[i], memory_order_relaxed);

        if (frame_state(word) == FRAME_HELD)
            found->held++;
        else if (frame_state(word) == FRAME_TABLE && !reached(&audit, i))
            found->lost++;
    }
    free(audit.reached);
    int64_t bytes = mm_frame_bytes(mm);
    found->frame_bytes = bytes < 0 ? 0 : (uint64_t)bytes;
    return err ? err : bytes < 0 ? (int)bytes : 0;
}

/* A frame that was a table before this look, and that the look does not reach,
 * was cut off by a server that died before it could free the frame. Frames that
 * clients are linking meanwhile become tables only once they are reachable. */
int mm_sweep(struct mm *mm)
{
    struct mm_audit found = {0};
    struct audit audit = {.found = &found};
    uint64_t high = frames_high(mm);
    uint8_t *tables = calloc(1, high / 8 + 1);
    int err = tables ? 0 : -ENOMEM;

    for (uint64_t i = 0; !err && i < high; i++)
        if (frame_state(atomic_load(&mm->words[i])) == FRAME_TABLE)
            tables[i / 8] |= (uint8_t)(1u << i % 8);
    if (!err)
        err = reach(mm, &audit);
    for (uint64_t i = 0; !err && i < high; i++)
        if (tables[i / 8] & 1u << i % 8 && !reached(&audit, i))
            err = frame_free(mm, i);
    free(tables);
    free(audit.reached);
    return err;
}
