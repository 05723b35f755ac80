/*
 * walk/main.c - mshare-walk: lets a processor walk the page tables of a region.
 *
 *   mshare-walk PATH SPACES SAMPLE all|some WAIT_MS
 *
 * Makes SPACES address spaces that link the region's tables. The first of them visits every page
 * that has an entry, the others SAMPLE of them, or (all) all of them, too. Accesses that are to be
 * refused are made to SAMPLE pages, and by the other spaces to two. With WAIT_MS they go on
 * until the region is changed, or for that time at most, and then look for what is gone; that they
 * are about to is said by the line {"running":true}. The last line is the answer:
 *
 *   {"ok":true,"spaces":64,...}
 *   {"ok":false,"errno":6,"error":"/dev/kvm: No such device or address"}
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "walk/visit.h"

enum { TRIES = 100, PRIVATE_MAX = 256, TIMED_PAGES = 128, TIMED_ROUNDS = 6, REFUSED = 2 };
/* So few spaces have room for their pages in a TLB, if it is not emptied. */
enum { FEW = 4, CROWDS = 2 };

struct marks {
    uint64_t accessed, dirty, unmarked;
};

struct tour {
    struct region region;
    struct machine machine;
    struct spaces spaces;
    uint64_t sample;
    bool all;
    const char *failed;

    struct leaf *chosen; /* of region.leaves */
    uint64_t chosen_count;
    struct leaf *part; /* of the chosen ones */
    struct found found;
    uint64_t links_least, links_most; /* of one space */
    uint64_t upper_tables;            /* PUD tables of all the pages */
    struct marks before, after;
    struct cycles cycles[CROWDS][SWITCHES];
    uint64_t timed_pages, timed_spaces[CROWDS];
    uint64_t changes, gone, seen_by;
};

static int fail(struct tour *tour, const char *what, int err)
{
    if (err)
        tour->failed = what;
    return err;
}

static struct marks marks_of(const struct region *region)
{
    struct marks marks = {0};

    for (uint64_t i = 0; i < region->count; i++) {
        const uint64_t entry = region->leaves[i].entry;

        marks.accessed += !!(entry & ENTRY_ACCESSED);
        marks.dirty += !!(entry & ENTRY_DIRTY);
        marks.unmarked += (entry & ENTRY_PRESENT && !(entry & ENTRY_ACCESSED)) ||
                          (visit_may(entry, LOOP_WRITE) && !(entry & ENTRY_DIRTY));
    }
    return marks;
}

/* Chooses up to `most` of the leaves, at equal distances. */
static void choose(struct tour *tour, uint64_t most)
{
    const uint64_t count = tour->region.count < most ? tour->region.count : most;

    for (uint64_t i = 0; i < count; i++)
        tour->chosen[i] = tour->region.leaves[i * tour->region.count / count];
    tour->chosen_count = count;
}

/* The region has been changed: what is known of its tables is forgotten, and found anew. */
static int renew(struct tour *tour)
{
    int err = region_look(&tour->region);

    tour->changes++;
    spaces_unlink(&tour->spaces);
    return err ? err : machine_forget(&tour->machine);
}

/* One kind of access to the chosen pages: to all that permit it, and to `refused` of the others,
 * since an access that faults takes a thousand times as long. A call is made only where it is
 * refused: it would run whatever is there. */
static int visit_by(struct tour *tour, uint64_t number, enum loop loop, uint64_t refused,
                    struct found *found)
{
    uint64_t closed = 0, seen = 0, count = 0;

    for (uint64_t i = 0; i < tour->chosen_count; i++)
        closed += !visit_may(tour->chosen[i].entry, loop);
    refused = refused < closed ? refused : closed;
    for (uint64_t i = 0; i < tour->chosen_count; i++) {
        const bool may = visit_may(tour->chosen[i].entry, loop);
        /* Every so many of those that refuse it. */
        const bool wanted = may ? loop != LOOP_JUMP
                                : (seen + 1) * refused / closed != seen * refused / closed;

        seen += !may;
        if (wanted)
            tour->part[count++] = tour->chosen[i];
    }
    return visit(&tour->spaces, number, loop, tour->part, count, found);
}

static int visit_chosen(struct tour *tour, uint64_t number, struct found *found)
{
    static const enum loop loops[] = {LOOP_READ, LOOP_WRITE, LOOP_JUMP};
    const uint64_t refused = number ? REFUSED : tour->sample;
    int err = 0;

    for (unsigned i = 0; i < sizeof loops / sizeof *loops && !err; i++)
        err = visit_by(tour, number, loops[i], refused, found);
    return err;
}

static int visit_space(struct tour *tour, uint64_t number)
{
    struct found once = {0};
    int err = -EAGAIN;

    for (unsigned tries = 0; err == -EAGAIN && tries < TRIES; tries++) {
        once = (struct found){0};
        choose(tour, tour->all || !number ? UINT64_MAX : tour->sample);
        err = visit_chosen(tour, number, &once);
        if (err == -EAGAIN && renew(tour))
            return -EBUSY;
    }
    tour->found.links += once.links;
    tour->found.visited += once.visited;
    tour->found.refused += once.refused;
    tour->found.wrong += once.wrong;
    tour->found.faulted += once.faulted;
    tour->found.allowed += once.allowed;
    tour->found.runs += once.runs;
    tour->links_most = once.links > tour->links_most ? once.links : tour->links_most;
    tour->links_least = once.links < tour->links_least ? once.links : tour->links_least;
    return err == -EAGAIN ? -EBUSY : err;
}

/* Pages of one 2 MiB span that may be read. A region that is changed meanwhile is not timed. */
static int measure(struct tour *tour)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < tour->region.count && count < TIMED_PAGES; i++) {
        const struct leaf *leaf = &tour->region.leaves[i];

        if (visit_may(leaf->entry, LOOP_READ) &&
            (!count || leaf->address / PMD_SIZE == tour->chosen[0].address / PMD_SIZE))
            tour->chosen[count++] = *leaf;
    }
    if (!count)
        return 0;
    for (unsigned crowd = 0; crowd < CROWDS; crowd++) {
        const uint64_t most = crowd ? FEW : PRIVATE_MAX;
        const uint64_t turns = tour->spaces.count < most ? tour->spaces.count : most;

        tour->timed_spaces[crowd] = turns;
        for (unsigned how = 0; how < SWITCHES; how++) {
            if (how != SWITCH_FLUSH && !tour->machine.has_pcid)
                continue;
            const int err = visit_time(&tour->spaces, turns, how, tour->chosen, count, TIMED_ROUNDS,
                                       &tour->cycles[crowd][how]);
            if (err == -EINVAL && how != SWITCH_FLUSH) /* KVM says it has them, and refuses them */
                tour->machine.has_pcid = false;
            else if (err)
                return err == -EAGAIN ? renew(tour) : err;
        }
    }
    tour->timed_pages = count;
    return 0;
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* What the machine has had and the region has no longer, at equal distances. */
static void choose_gone(struct tour *tour)
{
    const struct region *region = &tour->region;
    uint64_t at = 0, count = 0;

    for (uint64_t i = 0; i < region->known_count; i++) {
        while (at < region->count && region->leaves[at].address < region->known[i])
            at++;
        if (at == region->count || region->leaves[at].address != region->known[i])
            tour->chosen[count++] = (struct leaf){.address = region->known[i]};
    }
    tour->gone = count;
    tour->chosen_count = count < tour->sample ? count : tour->sample;
    for (uint64_t i = 0; i < tour->chosen_count; i++)
        tour->chosen[i] = tour->chosen[i * count / tour->chosen_count];
}

/* Whether a space finds nothing where nothing is any more, and the rest as it is. */
static int sees_change(struct tour *tour, uint64_t number, bool *sees)
{
    struct found found = {0};
    int err;

    choose_gone(tour);
    const uint64_t gone = tour->chosen_count;
    err = visit(&tour->spaces, number, LOOP_READ, tour->chosen, gone, &found);
    *sees = found.refused == gone && !found.allowed && !found.faulted;
    choose(tour, tour->sample);
    if (!err)
        err = visit(&tour->spaces, number, LOOP_READ, tour->chosen, tour->chosen_count, &found);
    if (!err) /* a right that was taken away is gone, too */
        err = visit_by(tour, number, LOOP_WRITE, REFUSED, &found);
    *sees = *sees && !found.wrong && !found.faulted && !found.allowed;
    return err;
}

static int wait_for_change(struct tour *tour, uint64_t wait_ms)
{
    const uint64_t until = now_ms() + wait_ms;
    struct found found = {0};
    int err = 0;

    if (!wait_ms)
        return 0;
    printf("{\"running\":true}\n");
    fflush(stdout);
    for (uint64_t i = 0; !err && now_ms() < until; i++) {
        choose(tour, tour->sample);
        err = visit(&tour->spaces, i % tour->spaces.count, LOOP_READ, tour->chosen,
                    tour->chosen_count, &found);
    }
    tour->found.wrong += found.wrong;
    tour->found.faulted += found.faulted;
    tour->found.allowed += found.allowed;
    if (err != -EAGAIN)
        return err;
    for (unsigned tries = 0; err == -EAGAIN && tries < TRIES; tries++) {
        err = renew(tour);
        tour->seen_by = 0;
        for (uint64_t i = 0; !err && i < tour->spaces.count; i++) {
            bool sees;

            err = sees_change(tour, i, &sees);
            tour->seen_by += !err && sees;
        }
    }
    return err == -EAGAIN ? -EBUSY : err;
}

static int begin(struct tour *tour, const char *path)
{
    const uint64_t bytes = spaces_bytes(tour->spaces.count, tour->spaces.private);
    int err = machine_open(&tour->machine, bytes, &tour->failed);

    if (!err)
        err = region_open(&tour->region, path, &tour->failed);
    if (!err)
        err = fail(tour, "reading its tables", region_look(&tour->region));
    if (!err)
        err = fail(tour, "giving it to the machine", region_add(&tour->region, &tour->machine));
    if (err)
        return err;
    tour->spaces.machine = &tour->machine;
    tour->spaces.region = &tour->region;
    spaces_make(&tour->spaces);
    tour->chosen = calloc(tour->region.count + 1, sizeof *tour->chosen);
    tour->part = calloc(tour->region.count + 1, sizeof *tour->part);
    return tour->chosen && tour->part ? 0 : fail(tour, "calloc", -ENOMEM);
}

static int go(struct tour *tour, uint64_t wait_ms)
{
    int err = 0;

    tour->before = marks_of(&tour->region);
    for (uint64_t i = 0, last = 0; i < tour->region.count; i++) {
        const uint64_t span = tour->region.leaves[i].address / P4D_SIZE;

        tour->upper_tables += span != last;
        last = span;
    }
    tour->links_least = UINT64_MAX;
    tour->failed = "walking its tables";
    for (uint64_t i = 0; !err && i < tour->spaces.count; i++)
        err = visit_space(tour, i);
    if (!err)
        err = measure(tour);
    if (!err)
        err = region_look(&tour->region);
    if (!err)
        tour->after = marks_of(&tour->region);
    return err ? err : wait_for_change(tour, wait_ms);
}

static void print_cycles(const struct tour *tour)
{
    static const char *const names[] = {"flush", "pcid", "one pcid"};
    const char *before = "";

    printf(",\"turns\":[");
    for (unsigned crowd = 0; crowd < CROWDS && tour->timed_pages; crowd++)
        for (unsigned how = 0; how < SWITCHES; how++) {
            const struct cycles *cycles = &tour->cycles[crowd][how];

            if (how != SWITCH_FLUSH && !tour->machine.has_pcid)
                continue;
            printf("%s{\"spaces\":%" PRIu64 ",\"switch\":\"%s\",\"shared\":%.1f,\"private\":%.1f}",
                   before, tour->timed_spaces[crowd], names[how], cycles->shared, cycles->private);
            before = ",";
        }
    printf("]");
}

static void print(const struct tour *tour)
{
    const struct found *found = &tour->found;
    const struct {
        const char *name;
        uint64_t value;
    } figures[] = {
        {"spaces", tour->spaces.count},
        {"pages", tour->region.known_count},
        {"left_out", tour->region.of_files},
        {"visited", found->visited},
        {"links", found->links},
        {"upper_tables", tour->upper_tables},
        {"links_least", tour->links_least},
        {"links_most", tour->links_most},
        {"refused", found->refused},
        {"wrong", found->wrong},
        {"faulted", found->faulted},
        {"allowed", found->allowed},
        {"runs", found->runs},
        {"accessed_before", tour->before.accessed},
        {"dirty_before", tour->before.dirty},
        {"accessed_after", tour->after.accessed},
        {"dirty_after", tour->after.dirty},
        {"unmarked", tour->after.unmarked},
        {"changes", tour->changes},
        {"gone", tour->gone},
        {"seen_by", tour->seen_by},
        {"has_pcid", tour->machine.has_pcid},
        {"timed_pages", tour->timed_pages},
    };

    printf("{\"ok\":true");
    for (unsigned i = 0; i < sizeof figures / sizeof *figures; i++)
        printf(",\"%s\":%" PRIu64, figures[i].name, figures[i].value);
    print_cycles(tour);
    printf("}\n");
}

int main(int argc, char **argv)
{
    struct tour tour = {0};

    if (argc != 6) {
        fprintf(stderr, "usage: mshare-walk PATH SPACES SAMPLE all|some WAIT_MS\n");
        return 2;
    }
    tour.spaces.count = strtoull(argv[2], NULL, 10);
    tour.spaces.private = tour.spaces.count < PRIVATE_MAX ? tour.spaces.count : PRIVATE_MAX;
    tour.sample = strtoull(argv[3], NULL, 10);
    tour.all = !strcmp(argv[4], "all");
    if (!tour.spaces.count || !tour.sample) {
        fprintf(stderr, "mshare-walk: SPACES and SAMPLE are at least 1\n");
        return 2;
    }
    int err = begin(&tour, argv[1]);
    if (!err && !tour.region.count)
        err = fail(&tour, "no page has an entry", -ENODATA);
    if (!err)
        err = go(&tour, strtoull(argv[5], NULL, 10));
    if (err)
        printf("{\"ok\":false,\"errno\":%d,\"error\":\"%s: %s\"}\n", -err, tour.failed,
               strerror(-err));
    else
        print(&tour);
    machine_close(&tour.machine);
    return err != 0;
}
