/*
 * handover.c - fully populated memory is handed over to Linux: it need not be watched.
 *
 * A fault comes to us because a page may have no entry in the host mm yet. Where all pages
 * have one, nothing is left to decide: the run of such pages is taken out of userfaultfd, and
 * Linux maps them out of .mem itself, 16 at a time and without a switch of threads.
 *
 *   entries    .ppp.pppppppppppppppp.p      a fault here:  ^
 *   window     wwwwww----------------ww     w: watched, -: handed over, not watched
 *
 * Before the server takes pages or rights away there, it makes them watched again, through its
 * own duplicate of our userfaultfd, even while we are stopped. So all memory stays watched
 * where a duplicate would not be enough: in a window once arrange.c has put it together from two
 * userfaultfds. Nothing is ever taken away from adopted memory.
 *
 * A budget of page tables counts faults: with a budget, a run ends with the 2 MiB span of the
 * fault, and a span that is given back is watched again.
 *
 * Each run splits a mapping, so there must not be many, and they must not be short.
 *
 * A page that is mapped when its run is handed over loses the right to write for a moment: the
 * next write to it is a fault. So spans in which we have mapped pages stay watched.
 *
 * Unless the mount has -o faults=watched, nothing is left to decide in memory that all may read
 * and write either, be its pages there or not: which pages .mem has is which entries there are,
 * and the server makes them when somebody looks (core/entries.c). The first fault in such memory
 * hands it over, but not while somebody asks which pages are used.
 *
 * Around a read Linux maps other pages too, but for a write only its page. So sequential writes
 * to pages that are there stay ours: mapping the following pages costs us a quarter of Linux's
 * faults (resolve.c).
 */
#include "client/handover.h"

#include <errno.h>
#include <limits.h>

#include "client/counts.h"
#include "client/present.h"
#include "client/request.h"
#include "core/entries.h"
#include "core/touched.h"
#include "core/uffd.h"

/* Linux maps that much around a fault: a shorter run has no advantage. */
#define RUN_MIN (16 * PAGE_SIZE)
/* One look goes no further than the table that spans this many bytes. */
#define LOOK_BYTES PUD_SIZE
/* Under a budget each span is a run of its own. */
#define HANDED_SPANS_MAX 4096u

static struct handed_run cut(struct handed_run run, uint64_t start, uint64_t end)
{
    return (struct handed_run){run.start > start ? run.start : start,
                               run.end < end ? run.end : end};
}

/* Leaves out the spans in which we have mapped pages. */
static struct handed_run cut_touched(const struct attachment *att, uint64_t offset,
                                     struct handed_run bounds)
{
    const uint64_t span = offset & ~(PMD_SIZE - 1);
    uint64_t start = bounds.start, stop;

    for (; touched_run(&att->mm, att->slot, &start, span, &stop); start = stop)
        bounds.start = stop;
    start = span + PMD_SIZE;
    if (touched_run(&att->mm, att->slot, &start, bounds.end, &stop))
        bounds.end = start;
    return bounds;
}

/* The largest possible run around a fault. */
static struct handed_run bounds_of(const struct attachment *att, const struct fault *fault)
{
    const uint64_t offset = fault->offset;
    /* Other quanta are not linked yet; in adopted memory nobody would see that. */
    const uint64_t look = is_adopted(att) || att->mm.quantum > LOOK_BYTES ? LOOK_BYTES
                                                                          : att->mm.quantum;
    struct handed_run bounds = {offset & ~(look - 1), (offset & ~(look - 1)) + look};

    for (unsigned i = 0; i < att->pieces.count; i++) {
        const struct piece *piece = &att->pieces.list[i];
        const struct handed_run left = {attachment_offset(att, piece->start),
                                        attachment_offset(att, piece->end)};

        if (offset >= left.start && offset < left.end)
            bounds = cut(bounds, left.start, left.end);
    }
    if (att->budget.spans)
        bounds = cut(bounds, offset & ~(PMD_SIZE - 1), (offset & ~(PMD_SIZE - 1)) + PMD_SIZE);
    return cut_touched(att, offset, cut(bounds, fault->vma.start, fault->vma.end));
}

static struct handed_run of_span(const struct attachment *att, uint32_t number)
{
    const struct span *span = &att->budget.spans[number];
    const uint64_t start = number * PMD_SIZE;

    return (struct handed_run){start + span->handed_from * PAGE_SIZE,
                               start + span->handed_to * PAGE_SIZE};
}

static uint64_t pages(struct handed_run run) { return (run.end - run.start) / PAGE_SIZE; }

/* Puts the run into the list, merged with those it meets. Returns how many pages are new;
 * 0: there is no room. */
static uint64_t enlist(struct handed *handed, struct handed_run run)
{
    struct handed_run whole = run;
    uint64_t known = 0;
    unsigned kept = 0;

    for (unsigned i = 0; i < handed->count; i++) {
        const struct handed_run other = handed->runs[i];

        if (other.start > run.end || other.end < run.start) {
            handed->runs[kept++] = other;
            continue;
        }
        known += pages(other);
        whole.start = other.start < whole.start ? other.start : whole.start;
        whole.end = other.end > whole.end ? other.end : whole.end;
    }
    if (kept == HANDED_MAX)
        return 0;
    handed->runs[kept] = whole;
    handed->count = kept + 1;
    return pages(whole) - known;
}

/* Does so with a budget, in the run's span. */
static uint64_t enlist_in_span(struct budget *budget, struct handed_run run)
{
    struct span *span = &budget->spans[run.start / PMD_SIZE];

    if (budget->handed == HANDED_SPANS_MAX)
        return 0;
    budget->handed += span->handed_from == span->handed_to;
    span->handed_from = (uint16_t)(run.start % PMD_SIZE / PAGE_SIZE);
    span->handed_to = (uint16_t)(span->handed_from + pages(run));
    return pages(run);
}

static bool unwatch(const struct attachment *att, struct handed_run run)
{
    return !uffd_unwatch(att->uffd, (uintptr_t)attachment_at(att, run.start), run.end - run.start);
}

bool handover_sequential_write(const struct attachment *att, const struct fault *fault)
{
    return fault->access == ACCESS_WRITE && (att->around.pages > 1 || !att->around.next);
}

/* Shows the run in the slot and in the counters. */
static void publish_run(struct attachment *att, struct handed_run run, uint64_t fresh)
{
    touched_mark(&att->mm, att->slot, run.start, run.end - run.start);
    counts_reached(att, run.start, run.end, fresh);
}

/* Hands over a run, in which pages may be `absent`. */
static bool hand_over(struct attachment *att, struct handed_run run, bool absent)
{
    const uint64_t fresh = att->budget.spans ? enlist_in_span(&att->budget, run)
                                             : enlist(&att->handed, run);

    if (!fresh)
        return false;
    if (!is_adopted(att))
        atomic_store(&att->mm.slots[att->slot].handed, 1);
    publish_run(att, run, absent ? 0 : fresh);
    return unwatch(att, run);
}

static void leave_out(struct handed_run run, struct fault *fault)
{
    if (run.end <= fault->offset && run.end > fault->start)
        fault->start = run.end;
    if (run.start > fault->offset && run.start < fault->end)
        fault->end = run.start;
}

void handover_clip(const struct attachment *att, struct fault *fault)
{
    const uint32_t number = (uint32_t)(fault->offset / PMD_SIZE);

    for (unsigned i = 0; i < att->handed.count; i++)
        leave_out(att->handed.runs[i], fault);
    if (att->budget.handed && att->budget.spans[number].handed_to)
        leave_out(of_span(att, number), fault);
}

static int watch_again(struct attachment *att, struct handed_run run)
{
    const uint64_t start = (uintptr_t)attachment_at(att, run.start);
    int err = 0;

    if (!is_adopted(att)) { /* objects may be mapped there by now */
        unsigned calls = UINT_MAX;
        const uint64_t bytes = run.end - run.start;
        const int64_t done = has_shadow(att) ? uffd_change_by(att->uffd, att->shadow.maps_fd, start,
                                                              bytes, UFFD_WATCH, &calls)
                                             : uffd_change(att->uffd, "/proc/thread-self/maps",
                                                           start, bytes, UFFD_WATCH, &calls);
        return done < 0 ? (int)done : 0;
    }
    for (unsigned i = 0; i < att->pieces.count && !err; i++) {
        const struct piece *piece = &att->pieces.list[i];
        const struct handed_run part = cut(run, attachment_offset(att, piece->start),
                                           attachment_offset(att, piece->end));

        if (part.start < part.end)
            err = uffd_watch(att->uffd, (uintptr_t)attachment_at(att, part.start),
                             part.end - part.start);
    }
    return err;
}

int handover_end_span(struct attachment *att, uint32_t number)
{
    struct span *span = &att->budget.spans[number];
    const struct handed_run run = of_span(att, number);

    if (run.start == run.end)
        return 0;
    span->handed_from = span->handed_to = 0;
    att->budget.handed--;
    return watch_again(att, run);
}

int handover_end(struct attachment *att)
{
    const struct budget *budget = &att->budget;
    int err = 0;

    for (uint32_t at = budget->first; at && budget->handed && !err; at = budget->spans[at - 1].next)
        err = handover_end_span(att, at - 1);
    while (att->handed.count && !err)
        err = watch_again(att, att->handed.runs[--att->handed.count]);
    return err;
}

int handover_leave(struct attachment *att)
{
    int err = 0;

    if (att->served == BY_THREAD)
        return handover_end(att);
    if (has_shadow(att))
        err = request(att, REQUEST_WATCH, 0, 0);
    return err == -ESRCH ? 0 : err; /* it was killed: nothing is watched any more */
}

/* There was a fault: if the page had been handed over, it has been taken away since, and the
 * whole run must be watched again. */
static bool taken_away(struct attachment *att, uint64_t offset)
{
    struct handed *handed = &att->handed;
    const uint32_t number = (uint32_t)(offset / PMD_SIZE);

    if (att->budget.handed && offset >= of_span(att, number).start &&
        offset < of_span(att, number).end)
        return !handover_end_span(att, number);
    for (unsigned i = 0; i < handed->count; i++) {
        const struct handed_run run = handed->runs[i];

        if (offset < run.start || offset >= run.end)
            continue;
        handed->runs[i] = handed->runs[--handed->count];
        watch_again(att, run);
        return true;
    }
    return false;
}

bool handover(struct attachment *att, const struct fault *fault)
{
    const bool before = taken_away(att, fault->offset);
    struct handed_run run;

    /* Nothing tells the server that a reader is about to hand over a run that is being watched
     * again: it has no epoch. */
    if (!att->mm.fault_around || att->reader || att->moved_uffd >= 0 || fault->filled ||
        fault->protect || handover_sequential_write(att, fault) ||
        (!before && touched_has(&att->mm, att->slot, fault->offset)))
        return false;
    const struct handed_run bounds = bounds_of(att, fault);
    run.end = present_end(&att->mm, fault->offset, bounds.end);
    run.start = present_begin(&att->mm, fault->offset, bounds.start);
    return run.end - run.start >= RUN_MIN && hand_over(att, run, false);
}

bool handover_absent(struct attachment *att, const struct fault *fault)
{
    const uint32_t all = VMA_READ | VMA_WRITE;

    if (!entries_by_linux(&att->mm) || att->reader || att->budget.spans || att->moved_uffd >= 0 ||
        (fault->vma.flags & all) != all)
        return false;
    taken_away(att, fault->offset);
    atomic_store(&att->mm.header->unwatched, 1);
    return hand_over(att, bounds_of(att, fault), true);
}
