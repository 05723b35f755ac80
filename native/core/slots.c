/*
 * slots.c - client slots, epochs and the grace period.
 *
 *   client                          server
 *   slot.epoch = header.epoch       publish: header.epoch = e + 1
 *   --- full fence ---              --- full fence ---
 *   read snapshot, tables           wait until no slot has 0 < epoch <= e
 *   slot.epoch = 0                  clear entries, punch pages, refill the area
 *
 * Either the server sees the client's epoch and waits, or the client sees the new
 * snapshot. If a client has read an old epoch number but the new snapshot, the
 * server waits for nothing, which is harmless.
 */
#include "core/slots.h"

#include <errno.h>
#include <string.h>

#include "core/frames.h"
#include "core/pagetable.h"
#include "core/touched.h"

unsigned slots_high(const struct mm *mm)
{
    uint64_t high = atomic_load(&mm->header->slots_high);

    return high < MM_SLOTS ? (unsigned)high : MM_SLOTS;
}

/* All but whose slot it is. */
static void forget(struct mm_slot *slot)
{
    memset((char *)slot + sizeof slot->state, 0, sizeof *slot - sizeof slot->state);
}

int slot_claim(struct mm *mm, uint64_t process, uint64_t start_time)
{
    for (unsigned i = 0; i < MM_SLOTS; i++) {
        struct mm_slot *slot = &mm->slots[i];
        uint64_t none = SLOT_FREE;

        if (atomic_load_explicit(&slot->state, memory_order_relaxed) != SLOT_FREE)
            continue;
        mm_raise(&mm->header->slots_high, i + 1);
        if (!atomic_compare_exchange_strong(&slot->state, &none, process))
            continue;
        /* Somebody else may have written into it while it was free. */
        forget(slot);
        slot->start_time = start_time;
        atomic_store(&slot->claim, atomic_fetch_add(&mm->header->claims, 1) + 1);
        return (int)i;
    }
    return -EUSERS;
}

void slot_enter(struct mm *mm, unsigned slot)
{
    uint64_t epoch = atomic_load_explicit(&mm->header->epoch, memory_order_relaxed);

    atomic_store_explicit(&mm->slots[slot].epoch, epoch, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}

void slot_leave(struct mm *mm, unsigned slot)
{
    atomic_store_explicit(&mm->slots[slot].epoch, 0, memory_order_release);
}

int slot_grace(struct mm *mm, unsigned *straggler)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t now = atomic_load_explicit(&mm->header->epoch, memory_order_relaxed);

    for (unsigned i = 0, high = slots_high(mm); i < high; i++) {
        uint64_t epoch = atomic_load_explicit(&mm->slots[i].epoch, memory_order_acquire);

        /* A slot is claimed before its first fault, and free only after its last one. */
        if (epoch && epoch < now && atomic_load(&mm->slots[i].state) != SLOT_FREE) {
            *straggler = i;
            return -EAGAIN;
        }
    }
    return 0;
}

/* Was the frame linked before its holder died? Then its parent points to it. */
struct link_check {
    uint64_t frame;
    unsigned level;
    bool linked;
};

static int check_link(struct walk *walk, _Atomic uint64_t *entry, uint64_t frame, unsigned level,
                      uint64_t addr)
{
    struct link_check *check = walk->arg;

    (void)entry, (void)addr;
    if (level == check->level && frame == check->frame)
        check->linked = true;
    return 0;
}

static int no_bad(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)entry, (void)level, (void)addr;
    return 0;
}

static void settle_frame(struct mm *mm, uint64_t frame, uint64_t word)
{
    struct link_check check = {.frame = frame, .level = frame_level(word)};
    struct walk walk = {.mm = mm, .table = check_link, .bad = no_bad, .arg = &check};
    uint64_t addr = frame_addr(word);

    if (addr < mm->host_end)
        walk_range(&walk, addr, addr + PAGE_SIZE);
    if (check.linked)
        atomic_store(&mm->words[frame], frame_word(FRAME_TABLE, check.level, 0, addr));
    else
        frame_drop(mm, frame);
}

void slot_settle(struct mm *mm, unsigned number)
{
    if (number >= MM_SLOTS || !atomic_load(&mm->slots[number].epoch))
        return;
    /* Only who died inside a fault can have a frame in hand. */
    for (uint64_t i = 0, high = frames_high(mm); i < high; i++) {
        uint64_t word = atomic_load_explicit(&mm->words[i], memory_order_relaxed);

        if (frame_state(word) == FRAME_HELD && frame_slot(word) == number)
            settle_frame(mm, i, word);
    }
    slot_leave(mm, number);
}

/* Keeps the counts, and gives the slot to whoever claims it next. */
static void release(struct mm *mm, struct mm_slot *slot)
{
    struct mm_counters *kept = &mm->header->retired;

    atomic_fetch_add(&kept->faults, atomic_load(&slot->counters.faults));
    atomic_fetch_add(&kept->links, atomic_load(&slot->counters.links));
    atomic_fetch_add(&kept->materialised, atomic_load(&slot->counters.materialised));
    atomic_fetch_add(&kept->segv, atomic_load(&slot->counters.segv));
    atomic_fetch_add(&kept->prefaulted, atomic_load(&slot->counters.prefaulted));
    atomic_fetch_add(&kept->evicted, atomic_load(&slot->counters.evicted));
    atomic_fetch_add(&kept->refaulted, atomic_load(&slot->counters.refaulted));
    forget(slot);
    atomic_store(&slot->state, SLOT_FREE);
}

int slot_reap(struct mm *mm, unsigned number)
{
    if (number >= MM_SLOTS)
        return -EINVAL;
    slot_settle(mm, number);
    touched_clear(mm, number);
    release(mm, &mm->slots[number]);
    return 0;
}

int slot_release(struct mm *mm, unsigned number, uint64_t claim)
{
    if (number >= MM_SLOTS)
        return -EINVAL;
    if (!atomic_compare_exchange_strong(&mm->slots[number].claim, &claim, 0))
        return -ESTALE;
    return slot_reap(mm, number);
}

int slot_release_at_once(struct mm *mm, unsigned number, uint64_t claim)
{
    if (number >= MM_SLOTS)
        return -EINVAL;
    struct mm_slot *slot = &mm->slots[number];

    /* Whoever writes into it meanwhile gets no more by that than bits of a bitmap that is not its
     * own, which cost it a system call, or a frame that is freed by the next mm_sweep(). */
    if (atomic_load(&slot->epoch) || atomic_load(&slot->touched))
        return -EAGAIN;
    if (!atomic_compare_exchange_strong(&slot->claim, &claim, 0))
        return -ESTALE;
    release(mm, slot);
    return 0;
}
