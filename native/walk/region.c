/* walk/region.c - see region.h. */
#define _GNU_SOURCE
#include "walk/region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "client/api.h"
#include "client/attachments.h"
#include "core/pagetable.h"
#include "core/slots.h"
#include "core/vma.h"
#include "walk/machine.h"

/* KVM has room for so many slots of memory, at least (KVM_CAP_NR_MEMSLOTS). */
#define MEMORIES_MAX 256u
/* A change lasts until every client has answered; one that is stopped is waited for so long. */
#define BUSY_MS 15000

static int take(struct region *region, const char *path)
{
    const struct attach_request request = {.prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED};
    void *base;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    int err = fd < 0 ? -errno : api_attach(fd, &request, &base);

    if (fd >= 0)
        close(fd);
    if (err)
        return err;
    attachments_lock();
    struct attachment *att = attachment_over((uintptr_t)base, (uintptr_t)base + 1);
    region->mm = &att->mm;
    region->slot = att->slot;
    region->mem = mmap(NULL, att->mm.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                       att->mem_fd, 0);
    err = region->mem == MAP_FAILED ? -errno : 0;
    attachments_unlock();
    return err;
}

int region_open(struct region *region, const char *path, const char **failed)
{
    *region = (struct region){.mem = MAP_FAILED};
    *failed = "attaching it";
    /* Descriptors and slot are to be this process's own, and no budget is to give anything back. */
    setenv("MSHAREFS_CLIENT", "thread", 1);
    unsetenv("MSHAREFS_PT_BUDGET");
    return take(region, path);
}

static bool busy(const struct mm *mm)
{
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(mm, atomic_load(&mm->header->epoch), &used);

    for (uint64_t i = 0; set && i < used; i++)
        if (set[i].flags & VMA_BUSY)
            return true;
    return !set;
}

/* Enters an epoch in which no change is going on. */
static int enter(const struct region *region)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    for (unsigned ms = 0; ms < BUSY_MS; ms++) {
        slot_enter(region->mm, region->slot);
        if (!busy(region->mm))
            return 0;
        slot_leave(region->mm, region->slot);
        nanosleep(&moment, NULL);
    }
    return -EBUSY;
}

static int by_address(const void *left, const void *right)
{
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

static bool is_known(const struct region *region, uint64_t address)
{
    return bsearch(&address, region->known, region->known_count, sizeof address, by_address);
}

static int collect(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct region *region = walk->arg;
    const uint64_t value = atomic_load(entry);

    if (!value || (region->known && !is_known(region, addr)))
        return 0;
    if (level || (value & ENTRY_ADDR) >= OBJECTS_BASE) {
        region->of_files++;
        return 0;
    }
    if (region->count == region->room) {
        const uint64_t room = region->room ? 2 * region->room : 4096;
        struct leaf *leaves = realloc(region->leaves, room * sizeof *leaves);

        if (!leaves)
            return -ENOMEM;
        region->leaves = leaves;
        region->room = room;
    }
    region->leaves[region->count++] = (struct leaf){.address = addr, .entry = value};
    return 0;
}

int region_look(struct region *region)
{
    struct walk walk = {.mm = region->mm, .leaf = collect, .arg = region};
    int err = enter(region);

    if (err)
        return err;
    region->count = region->of_files = 0;
    region->epoch = atomic_load(&region->mm->header->epoch);
    err = walk_range(&walk, HOST_BASE, region->mm->host_end);
    slot_leave(region->mm, region->slot);
    return err;
}

/* Runs of `grain` bytes that have entries; gives them to `machine` if there is one. */
static int add_runs(const struct region *region, struct machine *machine, uint64_t grain,
                    uint64_t *runs)
{
    uint64_t start = 0, end = 0;
    int err = 0;

    *runs = 0;
    for (uint64_t i = 0; i <= region->count && !err; i++) {
        const bool more = i < region->count;
        const uint64_t at = more ? (region->leaves[i].address - HOST_BASE) & ~(grain - 1) : 0;

        if (more && end && at <= end) {
            end = at + grain;
            continue;
        }
        if (end) {
            ++*runs;
            end = end < region->mm->size ? end : region->mm->size;
            if (machine)
                err = machine_add(machine, DATA_BASE + start, region->mem + start, end - start);
        }
        start = at;
        end = more ? at + grain : 0;
    }
    return err;
}

int region_add(struct region *region, struct machine *machine)
{
    uint64_t runs, grain = PMD_SIZE;
    int err = machine_add_tables(machine, TABLES_BASE, region->mm->frames,
                                 region->mm->frames_max * PAGE_SIZE);

    region->known = calloc(region->count + 1, sizeof *region->known);
    if (!region->known)
        return -ENOMEM;
    region->known_count = region->count;
    for (uint64_t i = 0; i < region->count; i++)
        region->known[i] = region->leaves[i].address;
    for (; !err && !add_runs(region, NULL, grain, &runs) && runs > MEMORIES_MAX; grain *= 2)
        ;
    return err ? err : add_runs(region, machine, grain, &runs);
}

int region_enter(const struct region *region)
{
    int err = enter(region);

    if (!err && region_changed(region)) {
        slot_leave(region->mm, region->slot);
        err = -EAGAIN;
    }
    return err;
}

void region_leave(const struct region *region) { slot_leave(region->mm, region->slot); }

bool region_changed(const struct region *region)
{
    return atomic_load(&region->mm->header->epoch) != region->epoch;
}

uint64_t region_place(uint64_t address) { return address + address / PAGE_SIZE % 512 * 8; }

uint64_t region_word(const struct region *region, uint64_t address)
{
    return *(volatile uint64_t *)(region->mem + region_place(address) - HOST_BASE);
}

static int read_entry(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)level, (void)addr;
    *(uint64_t *)walk->arg = atomic_load(entry);
    return 0;
}

uint64_t region_entry(const struct region *region, uint64_t address)
{
    uint64_t value = 0;
    struct walk walk = {.mm = region->mm, .leaf = read_entry, .arg = &value};

    return walk_range(&walk, address, address + PAGE_SIZE) ? 0 : value;
}
