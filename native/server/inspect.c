/* inspect.c - copying out the contents of a host mm; see inspect.h. */
#include "server/inspect.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "core/frames.h"
#include "core/pagetable.h"
#include "core/slots.h"
#include "core/touched.h"
#include "core/vma.h"

void mm_set_owner(struct mm *mm, int32_t pid, uint64_t start_time, const char *cgroup,
                  enum mm_owner_kind kind)
{
    mm->header->owner_kind = kind;
    mm->header->owner_pid = pid;
    mm->header->owner_start_time = start_time;
    strncpy(mm->header->owner_cgroup, cgroup, MM_CGROUP_LEN - 1);
    mm->header->owner_cgroup[MM_CGROUP_LEN - 1] = 0;
}

int mm_set_fault_around(struct mm *mm, uint32_t pages)
{
    if (pages > SPAN_PAGES)
        return -EINVAL;
    mm->header->fault_around = pages;
    return 0;
}

void mm_set_linux_fills(struct mm *mm, bool fills)
{
    atomic_store(&mm->header->linux_fills, fills);
}

bool mm_unwatched(const struct mm *mm) { return atomic_load(&mm->header->unwatched); }

void mm_set_watched(struct mm *mm) { atomic_store(&mm->header->unwatched, 0); }

int mm_set_budget(struct mm *mm, uint64_t bytes)
{
    if (bytes && bytes < BUDGET_MIN_BYTES)
        return -EINVAL;
    mm->header->budget = bytes;
    return 0;
}

const char *mm_owner_cgroup(const struct mm *mm) { return mm->header->owner_cgroup; }

enum mm_owner_kind mm_owner_kind(const struct mm *mm)
{
    /* Read once: others may write it. */
    const uint32_t kind = *(volatile uint32_t *)&mm->header->owner_kind;

    return kind > OWNER_CREATOR ? OWNER_FILE : kind;
}

void mm_end(struct mm *mm) { mm->header->owner_kind = OWNER_GONE; }

void mm_count_unmap(struct mm *mm) { mm->header->unmaps++; }

static void add_counters(struct mshare_stat *st, const struct mm_counters *counters)
{
    st->faults += atomic_load(&counters->faults);
    st->links += atomic_load(&counters->links);
    st->materialised_pages += atomic_load(&counters->materialised);
    st->segv += atomic_load(&counters->segv);
    st->prefaulted += atomic_load(&counters->prefaulted);
    st->evicted_spans += atomic_load(&counters->evicted);
    st->refaulted_spans += atomic_load(&counters->refaulted);
}

int mm_stat(const struct mm *mm, int mem_fd, struct mshare_stat *st)
{
    struct stat file;
    int64_t bytes = mm_frame_bytes(mm);

    if (bytes < 0)
        return (int)bytes;
    if (fstat(mem_fd, &file))
        return -errno;
    *st = (struct mshare_stat){
        .size = mm->size,
        .quantum = mm->quantum,
        .rss = (uint64_t)file.st_blocks * 512,
        .page_table_bytes = (uint64_t)bytes,
        .unmaps = mm->header->unmaps,
        .budget = mm->header->budget,
        .owner_pid = mm->header->owner_pid,
        .owner_start_time = mm->header->owner_start_time,
    };
    vma_snapshot(mm, atomic_load(&mm->header->epoch), &st->vmas);
    for (uint64_t i = 0, high = frames_high(mm); i < high; i++) {
        uint64_t word = atomic_load_explicit(&mm->words[i], memory_order_relaxed);

        if (frame_state(word) != FRAME_FREE)
            st->table_frames[frame_level(word)]++;
    }
    add_counters(st, &mm->header->retired);
    for (unsigned i = 0; i < slots_high(mm); i++)
        if (atomic_load(&mm->slots[i].state) != SLOT_FREE) {
            st->clients++;
            st->budgets_grown += atomic_load(&mm->slots[i].budget) >
                                 atomic_load(&mm->slots[i].budget_asked);
            add_counters(st, &mm->slots[i].counters);
        }
    return 0;
}

int64_t mm_vmas(const struct mm *mm, struct mm_vma *vmas, uint64_t max)
{
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);

    if (!set)
        return -EUCLEAN;
    for (uint64_t i = 0; i < used && i < max; i++)
        vmas[i] = set[i];
    return (int64_t)used;
}

struct listing {
    struct mm_table *tables;
    uint64_t used, max;
};

/* What its 512 entries say. */
static void count_entries(struct mm_table *found, const _Atomic uint64_t *table)
{
    for (unsigned i = 0; i < 512; i++) {
        const uint64_t entry = atomic_load_explicit(&table[i], memory_order_relaxed);

        if (!(entry & ENTRY_PRESENT))
            continue;
        found->present++;
        found->huge += found->level == 1 && entry & ENTRY_HUGE;
        found->accessed += !found->level && entry & ENTRY_ACCESSED;
        found->dirty += !found->level && entry & ENTRY_DIRTY;
    }
}

static void list(struct listing *listing, const struct mm *mm, uint64_t frame, unsigned level,
                 uint64_t addr)
{
    if (listing->used < listing->max) {
        struct mm_table *found = &listing->tables[listing->used];

        *found = (struct mm_table){
            .frame = frame,
            .level = level,
            .start = addr,
            .end = addr + entry_span(level + 1),
        };
        count_entries(found, frame_entries(mm, frame));
    }
    listing->used++;
}

static int list_table(struct walk *walk, _Atomic uint64_t *entry, uint64_t frame, unsigned level,
                      uint64_t addr)
{
    (void)entry;
    list(walk->arg, walk->mm, frame, level, addr);
    return 0;
}

int64_t mm_tables(struct mm *mm, struct mm_table *tables, uint64_t max)
{
    struct listing listing = {.tables = tables, .max = max};
    struct walk walk = {.mm = mm, .table = list_table, .arg = &listing};
    int err = walk_range(&walk, HOST_BASE, mm->host_end);

    list(&listing, mm, 0, 3, 0);
    return err ? err : (int64_t)listing.used;
}

struct huge_pages {
    uint64_t *pages;
    uint64_t used, max;
};

static int list_huge(struct walk *walk, _Atomic uint64_t *entry, uint64_t frame, unsigned level,
                     uint64_t addr)
{
    const uint64_t leaf = ENTRY_PRESENT | ENTRY_HUGE;
    const _Atomic uint64_t *table = frame_entries(walk->mm, frame);
    struct huge_pages *found = walk->arg;

    (void)entry;
    for (unsigned i = 0; level == 1 && i < 512; i++) {
        if ((atomic_load_explicit(&table[i], memory_order_relaxed) & leaf) != leaf)
            continue;
        if (found->used < found->max)
            found->pages[found->used] = addr + i * entry_span(1);
        found->used++;
    }
    return 0;
}

int64_t mm_huge_pages(struct mm *mm, uint64_t *pages, uint64_t max)
{
    struct huge_pages found = {.pages = pages, .max = max};
    struct walk walk = {.mm = mm, .table = list_huge, .arg = &found};
    int err = walk_range(&walk, HOST_BASE, mm->host_end);

    return err ? err : (int64_t)found.used;
}

struct presence {
    uint8_t *vec;
    uint64_t start, end; /* host addresses */
};

static int note_presence(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    const struct presence *found = walk->arg;
    const uint64_t end = addr + entry_span(level);

    if (!(atomic_load_explicit(entry, memory_order_relaxed) & ENTRY_PRESENT))
        return 0;
    for (uint64_t page = addr; page < end; page += PAGE_SIZE)
        if (page >= found->start && page < found->end)
            found->vec[(page - found->start) / PAGE_SIZE] = 1;
    return 0;
}

void mm_present(struct mm *mm, uint64_t start, uint64_t end, uint8_t *vec)
{
    struct presence found = {vec, HOST_BASE + start, HOST_BASE + end};
    struct walk walk = {.mm = mm, .leaf = note_presence, .arg = &found};

    memset(vec, 0, (end - start) / PAGE_SIZE);
    if (found.end > mm->host_end)
        found.end = mm->host_end;
    if (found.start < found.end)
        walk_range(&walk, found.start, found.end);
}

struct leaves {
    struct mm_leaf *leaves;
    uint64_t used, max, start; /* a host address */
};

static int list_leaf(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    const uint64_t value = atomic_load_explicit(entry, memory_order_relaxed);
    struct leaves *found = walk->arg;

    if (!(value & (ENTRY_PRESENT | ENTRY_PROTNONE)) || addr < found->start)
        return 0;
    if (found->used < found->max)
        found->leaves[found->used] = (struct mm_leaf){
            .start = addr, .size = entry_span(level), .entry = value};
    found->used++;
    return 0;
}

int64_t mm_leaves(struct mm *mm, uint64_t start, uint64_t end, struct mm_leaf *leaves, uint64_t max)
{
    const uint64_t limit = mm->host_end - HOST_BASE;
    struct leaves found = {.leaves = leaves, .max = max, .start = HOST_BASE + start};
    struct walk walk = {.mm = mm, .leaf = list_leaf, .arg = &found};
    int err = 0;

    end = end < limit ? end : limit;
    if (start < end)
        err = walk_range(&walk, HOST_BASE + start, HOST_BASE + end);
    return err ? err : (int64_t)found.used;
}

static int add_usage(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    const uint64_t value = atomic_load_explicit(entry, memory_order_relaxed);
    const uint64_t pages = entry_span(level) / PAGE_SIZE;
    struct mm_usage *usage = walk->arg;

    (void)addr;
    usage->present += value & (ENTRY_PRESENT | ENTRY_PROTNONE) ? pages : 0;
    usage->accessed += value & ENTRY_ACCESSED ? pages : 0;
    usage->dirty += value & ENTRY_DIRTY ? pages : 0;
    return 0;
}

int mm_usage(struct mm *mm, uint64_t start, uint64_t end, struct mm_usage *usage)
{
    const uint64_t limit = mm->host_end - HOST_BASE;
    struct walk walk = {.mm = mm, .leaf = add_usage, .arg = usage};

    end = end < limit ? end : limit;
    return start < end ? walk_range(&walk, HOST_BASE + start, HOST_BASE + end) : 0;
}

/* What the client says, which cannot be more than the tables of its window. */
static uint32_t unshared(const struct mm_slot *slot, uint64_t spans)
{
    const uint32_t said = atomic_load(&slot->unshared);

    return said < spans ? said : (uint32_t)spans;
}

bool mm_client(const struct mm *mm, unsigned number, struct mm_client *client)
{
    if (number >= MM_SLOTS)
        return false;
    const struct mm_slot *slot = &mm->slots[number];
    const uint64_t process = atomic_load(&slot->state);

    if (process == SLOT_FREE)
        return false;
    uint64_t start, end;
    mm_part(mm, number, &start, &end);
    *client = (struct mm_client){
        .slot = number,
        .pid = (uint32_t)process,
        .pid_namespace = (uint32_t)(process >> 32),
        .claim = atomic_load(&slot->claim),
        .start_time = slot->start_time,
        .base = slot->base,
        .offset = start,
        .size = end - start,
        .prot = slot->prot,
        .way = slot->way,
        .poisoned = atomic_load(&slot->poisoned),
        .unshared = unshared(slot, (end - start) / PMD_SIZE),
        .faults = atomic_load(&slot->counters.faults),
        .links = atomic_load(&slot->counters.links),
        .materialised = atomic_load(&slot->counters.materialised),
        .segv = atomic_load(&slot->counters.segv),
        .epoch = atomic_load(&slot->epoch),
        .budget = atomic_load(&slot->budget) * PAGE_SIZE,
        .budget_asked = atomic_load(&slot->budget_asked) * PAGE_SIZE,
        .budget_grown = atomic_load(&slot->budget_grown),
        .evicted = atomic_load(&slot->counters.evicted),
        .refaulted = atomic_load(&slot->counters.refaulted),
    };
    return true;
}

int64_t mm_clients(const struct mm *mm, struct mm_client *clients, uint64_t max)
{
    struct mm_client spare;
    uint64_t used = 0;

    for (unsigned i = 0; i < slots_high(mm); i++)
        used += mm_client(mm, i, used < max ? &clients[used] : &spare);
    return (int64_t)used;
}

uint32_t mm_client_pid(const struct mm *mm, unsigned slot)
{
    return slot < MM_SLOTS ? (uint32_t)atomic_load(&mm->slots[slot].state) : SLOT_FREE;
}

uint64_t mm_claim(const struct mm *mm, unsigned slot)
{
    return slot < MM_SLOTS ? atomic_load(&mm->slots[slot].claim) : 0;
}

bool mm_adopted(const struct mm *mm, unsigned slot)
{
    return slot < MM_SLOTS && mm->slots[slot].way == ATTACH_ADOPTED;
}

bool mm_handed(const struct mm *mm, unsigned slot)
{
    return slot < MM_SLOTS && atomic_load(&mm->slots[slot].handed);
}

int mm_touched(const struct mm *mm, unsigned from, unsigned until, uint64_t start, uint64_t end)
{
    for (unsigned high = slots_high(mm); from < until && from < high; from++) {
        uint64_t at = start, stop;

        if (atomic_load(&mm->slots[from].state) != SLOT_FREE &&
            touched_run(mm, from, &at, end, &stop))
            return (int)from;
    }
    return -1;
}

int mm_poisoned(const struct mm *mm, unsigned from)
{
    for (unsigned high = slots_high(mm); from < high; from++)
        if (atomic_load(&mm->slots[from].poisoned) &&
            atomic_load(&mm->slots[from].state) != SLOT_FREE)
            return (int)from;
    return -1;
}

void mm_set_client(struct mm *mm, unsigned slot, uint32_t pid, uint64_t start_time)
{
    if (slot >= MM_SLOTS)
        return;
    mm->slots[slot].start_time = start_time;
    atomic_store(&mm->slots[slot].state, slot_process(pid, 0));
}
