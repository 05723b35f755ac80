/*
 * audit.c - the invariants of a whole region, checked.
 *
 *   frames in use == frames reachable from the PGD     (none lost)
 *   bytes the frame area takes == 4096 * frames in use (none dirty when free)
 *   every present leaf lies in a VMA, with its address, its size and no more rights
 *   VMAs are sorted, disjoint, page aligned and inside the region; 2 MiB aligned
 *     where their pages are
 *
 * All but the last can be mended: a page table is a cache of what the VMAs permit, and a page
 * whose entry has gone is found by the next fault.
 */
#define _GNU_SOURCE
#include "core/audit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* Adds a leaf entry to what was found. Whether it is as it must be. */
static bool judge(const struct mm *mm, struct mm_audit *found, uint64_t value, unsigned level,
                  uint64_t addr)
{
    const uint64_t offset = addr - HOST_BASE;
    struct mm_vma vma;

    if (vma_find(mm, offset, &vma) || offset + entry_span(level) > vma.end) {
        found->stray++;
        return false;
    }
    if (!(value & ENTRY_USER) || !(value & ENTRY_PRESENT) != !(vma.flags & VMA_PROT) ||
        !(value & ENTRY_PRESENT) != !!(value & ENTRY_PROTNONE) ||
        (value & ENTRY_ADDR) != (vma.object ? OBJECTS_BASE : DATA_BASE) + offset ||
        !(level ? may_be_huge(&vma) : !(vma.flags & VMA_HUGE)) ||
        ((value & ENTRY_RW) && !(vma.flags & VMA_WRITE)) ||
        (!(value & ENTRY_NX) && !(vma.flags & VMA_EXEC))) {
        found->bad++;
        return false;
    }
    return true;
}

static int count_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct audit *audit = walk->arg;
    uint64_t value = atomic_load(entry);

    if (!value)
        return 0;
    audit->found->leaves++;
    judge(walk->mm, audit->found, value, level, addr);
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

static int drop_wrong_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level,
                           uint64_t addr)
{
    struct audit *audit = walk->arg;
    uint64_t value = atomic_load(entry);

    if (value && !judge(walk->mm, audit->found, value, level, addr))
        atomic_compare_exchange_strong(entry, &value, 0);
    return 0;
}

static int drop_bad(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)level, (void)addr;
    atomic_store(entry, 0);
    return 0;
}

/* The marks and words of all frames that can be reached: one beyond the mark was never counted. */
static int recount(struct mm *mm)
{
    struct mm_audit found = {0};
    struct audit audit = {.found = &found};
    const int err = reach(mm, &audit);
    const uint64_t high = frames_high(mm);
    uint64_t end = mm->frames_max;

    while (!err && end > high && !reached(&audit, end - 1))
        end -= audit.reached[(end - 1) / 8] ? 1 : (end - 1) % 8 + 1;
    if (!err && end > high)
        mm_raise(&mm->header->frames_high, end);
    free(audit.reached);
    atomic_store(&mm->words[0], frame_word(FRAME_TABLE, 3, 0, 0));
    return err;
}

/* A frame of no state that there is, or held by a slot that nobody holds. Whoever claims the slot
 * meanwhile may take the frame again, and go on with it. */
static void let_go_of_held(struct mm *mm, uint64_t frame)
{
    uint64_t word = atomic_load(&mm->words[frame]);
    const uint64_t held = word,
                   table = frame_word(FRAME_TABLE, frame_level(word), 0, frame_addr(word));
    const unsigned slot = frame_slot(word);

    if (frame_state(word) == FRAME_FREE || frame_state(word) == FRAME_TABLE ||
        (slot < MM_SLOTS && atomic_load(&mm->slots[slot].state) != SLOT_FREE) ||
        !atomic_compare_exchange_strong(&mm->words[frame], &word, table))
        return;
    if (slot < MM_SLOTS && atomic_load(&mm->slots[slot].state) != SLOT_FREE) {
        word = table;
        atomic_compare_exchange_strong(&mm->words[frame], &word, held);
    }
}

/* Frames that are free and not empty. Each is a table meanwhile, so that nobody takes it. */
static int empty_free_frames(struct mm *mm)
{
    const uint64_t word = frame_word(FRAME_TABLE, 0, 0, HOST_BASE);

    for (off_t at = (off_t)mm->frames_at; (at = lseek(mm->fd, at, SEEK_DATA)) >= 0;) {
        const uint64_t frame = ((uint64_t)at - mm->frames_at) / PAGE_SIZE;
        uint64_t none = 0;

        if (frame >= mm->frames_max)
            return 0;
        mm_raise(&mm->header->frames_high, frame + 1);
        if (atomic_compare_exchange_strong(&mm->words[frame], &none, word)) {
            const int err = frame_free(mm, frame);
            if (err)
                return err;
        }
        at = (off_t)(mm->frames_at + (frame + 1) * PAGE_SIZE);
    }
    return errno == ENXIO ? 0 : -errno;
}

int mm_mend(struct mm *mm)
{
    struct mm_audit found = {0};
    struct audit audit = {.found = &found};
    struct walk walk = {
        .mm = mm, .leaf = drop_wrong_leaf, .bad = drop_bad, .filled = true, .arg = &audit};
    int err = walk_range(&walk, HOST_BASE, mm->host_end);

    err = err ? err : recount(mm);
    for (uint64_t i = 1, high = frames_high(mm); !err && i < high; i++)
        if (atomic_load_explicit(&mm->words[i], memory_order_relaxed)) /* of most, there is none */
            let_go_of_held(mm, i);
    err = err ? err : mm_sweep(mm);
    return err ? err : empty_free_frames(mm);
}
