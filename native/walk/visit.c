/* walk/visit.c - see visit.h. */
#include "walk/visit.h"

#include <errno.h>
#include <stdlib.h>

#include "core/pagetable.h"

/* Pages of one run: what waits for the end of our epoch waits for less than a millisecond. */
#define BATCH 2048u

enum { PAGE_FAULT = 14, PCIDS = 4096 };
/* Bits of its error code. */
enum { ERROR_PRESENT = 1, ERROR_WRITE = 2, ERROR_USER = 4, ERROR_FETCH = 16 };

bool visit_may(uint64_t entry, enum loop loop)
{
    if (!(entry & ENTRY_PRESENT))
        return false;
    if (loop == LOOP_WRITE)
        return entry & ENTRY_RW;
    return loop != LOOP_JUMP || !(entry & ENTRY_NX);
}

/* The error code with which a processor refuses the access. */
static uint64_t refusal(uint64_t entry, enum loop loop)
{
    uint64_t error = ERROR_USER;

    if (entry & ENTRY_PRESENT)
        error |= ERROR_PRESENT;
    if (loop == LOOP_WRITE)
        error |= ERROR_WRITE;
    if (loop == LOOP_JUMP)
        error |= ERROR_FETCH;
    return error;
}

/* An exception at `stop`. Returns whether the access is to be tried again. */
static bool faulted(const struct spaces *spaces, uint64_t number, enum loop loop,
                    const struct leaf *leaf, const struct stop *stop, struct found *found)
{
    const uint64_t place = region_place(leaf->address);

    if (stop->vector == PAGE_FAULT && stop->address == place && !(stop->error & ERROR_PRESENT) &&
        space_link(spaces, number, place)) {
        found->links++;
        return true;
    }
    if (stop->vector == PAGE_FAULT && stop->address == place && !visit_may(leaf->entry, loop) &&
        stop->error == refusal(leaf->entry, loop))
        found->refused++;
    else
        found->faulted++;
    return false;
}

static int run(const struct spaces *spaces, uint64_t number, enum loop loop,
               const struct leaf *leaves, uint64_t count, struct found *found, bool *visited)
{
    struct stop stop = {0};
    int err = 0;

    for (uint64_t from = 0; from < count && !err;) {
        err = machine_run(spaces->machine, space_pgd(spaces, number), loop, from, count, &stop);
        found->runs++;
        const uint64_t end = stop.done ? count : stop.index;
        if (err || end > count || end < from || (!stop.done && end == count))
            return err ? err : -EIO;
        for (uint64_t i = from; i < end; i++)
            visited[i] = true;
        from = end;
        if (!stop.done && !faulted(spaces, number, loop, &leaves[from], &stop, found))
            from++;
    }
    return err;
}

static int visit_batch(const struct spaces *spaces, uint64_t number, enum loop loop,
                       const struct leaf *leaves, uint64_t count, struct found *found)
{
    const struct region *region = spaces->region;
    static uint64_t before[BATCH];
    static bool visited[BATCH];
    int err = region_enter(region);

    if (err)
        return err;
    for (uint64_t i = 0; i < count; i++) {
        const bool may = visit_may(leaves[i].entry, loop);

        spaces->machine->list[i] = region_place(leaves[i].address);
        visited[i] = false;
        before[i] = may ? region_word(region, leaves[i].address) : 0;
    }
    err = run(spaces, number, loop, leaves, count, found, visited);
    for (uint64_t i = 0; i < count && !err; i++) {
        if (!visited[i])
            continue;
        found->visited++;
        if (!visit_may(leaves[i].entry, loop))
            found->allowed++;
        else if (spaces->machine->results[i] != before[i] &&
                 before[i] == region_word(region, leaves[i].address)) /* nobody else stored */
            found->wrong++;
    }
    region_leave(region);
    return err;
}

int visit(const struct spaces *spaces, uint64_t number, enum loop loop, const struct leaf *leaves,
          uint64_t count, struct found *found)
{
    int err = 0;

    for (uint64_t at = 0; at < count && !err; at += BATCH)
        err = visit_batch(spaces, number, loop, leaves + at,
                          count - at < BATCH ? count - at : BATCH, found);
    return err;
}

/* CR3 of a space that goes on, by its own tables or by the region's. */
static uint64_t cr3_of(const struct spaces *spaces, uint64_t number, bool own, enum switching how)
{
    const uint64_t pgd = own ? space_private_pgd(spaces, number) : space_pgd(spaces, number);
    uint64_t pcid = number + 1;

    if (how == SWITCH_FLUSH)
        return pgd;
    if (how == SWITCH_ONE_PCID)
        pcid = PCIDS - 2;
    return pgd | CR3_NOFLUSH | (own ? PCIDS - 1 - pcid : pcid);
}

/* One turn of a space: the cycles of a load. */
static int turn(const struct spaces *spaces, uint64_t number, bool own, enum switching how,
                const struct leaf *leaves, uint64_t count, double *cycles)
{
    struct machine *machine = spaces->machine;
    struct stop stop = {0};
    int err = region_enter(spaces->region);

    if (err)
        return err;
    space_link(spaces, number, leaves->address); /* a change may have unlinked it */
    for (uint64_t i = 0; i < count; i++)
        machine->list[i] = region_place(leaves[i].address);
    err = machine_switch(machine, cr3_of(spaces, number, own, how));
    if (!err)
        err = machine_run(machine, machine->user.cr3, LOOP_TIME, 0, count, &stop);
    region_leave(spaces->region);
    if (!err && !stop.done)
        err = -EIO;
    *cycles = err ? 0 : (double)machine->results[0] / (double)count;
    return err;
}

static int by_value(const void *left, const void *right)
{
    const double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

/* The medians of all turns but those of the first round, in which tables and caches are filled. */
static void summarise(double *shared, double *private, uint64_t count, uint64_t first,
                      struct cycles *cycles)
{
    qsort(shared + first, count - first, sizeof *shared, by_value);
    qsort(private + first, count - first, sizeof *private, by_value);
    cycles->shared = shared[first + (count - first) / 2];
    cycles->private = private[first + (count - first) / 2];
}

int visit_time(const struct spaces *spaces, uint64_t turns, enum switching how,
               const struct leaf *leaves, uint64_t count, unsigned rounds, struct cycles *cycles)
{
    const uint64_t all = turns * rounds;
    double *shared = calloc(all, sizeof *shared), *private = calloc(all, sizeof *private);
    int err = shared && private ? 0 : -ENOMEM;

    machine_use_pcids(spaces->machine, how != SWITCH_FLUSH);
    /* One after the other, so that neither takes the other's room in the TLB. */
    for (uint64_t i = 0; i < all && !err; i++) {
        if (i < turns)
            space_copy(spaces, i, leaves, count);
        err = turn(spaces, i % turns, true, how, leaves, count, &private[i]);
    }
    for (uint64_t i = 0; i < all && !err; i++)
        err = turn(spaces, i % turns, false, how, leaves, count, &shared[i]);
    machine_use_pcids(spaces->machine, false);
    if (!err)
        summarise(shared, private, all, turns, cycles);
    free(shared);
    free(private);
    return err;
}
