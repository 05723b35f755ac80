/*
 * resolve.c - one userfaultfd event, answered: host mm first, then the real MMU.
 *
 *   event     page in .mem   how it is made reachable
 *   MISSING   no             fallocate, CONTINUE
 *   MINOR     yes            CONTINUE, over the present entries that follow when
 *                            the accesses are sequential
 *   WP        mapped         WRITEPROTECT off
 *   any, in an object        mmap(2) of a block of it over the window (objects.c)
 *
 * A refused access must end in the signal the kernel would give, in the thread
 * that made it: the page becomes a guard page, which faults natively (poison.c), and
 * the thread is woken.
 *
 * Runs on the service thread: no malloc, no stdio, no region memory.
 */
#define _GNU_SOURCE
#include "client/resolve.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "client/around.h"
#include "client/arrange.h"
#include "client/budget.h"
#include "client/charge.h"
#include "client/counts.h"
#include "client/handover.h"
#include "client/objects.h"
#include "client/own.h"
#include "client/poison.h"
#include "client/present.h"
#include "client/private.h"
#include "client/reader.h"
#include "client/trouble.h"
#include "client/view.h"
#include "core/entries.h"
#include "core/slots.h"
#include "core/touched.h"
#include "core/trace.h"

#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif

/* What a fault of a page that is there has. */
#define FLAGS_PRESENT (UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WP)

static void wake_for(const struct attachment *att, const struct fault *fault)
{
    view_wake(att, fault->start, fault->end);
}

/* As own_release(). The program arranges adopted memory; pieces.c knows which is ours. */
static int release(const struct attachment *att, const struct fault *fault)
{
    return is_adopted(att) ? 0 : own_release(att, fault->offset);
}

/* Maps the pages of [start, end), which have entries. Passes over a page that is
 * absent (its filler died), mapped already, or no longer in the window. A guard page
 * may have split the window, and a call fails over a split: then it goes page by
 * page. Not over that of the fault, if it is not in the window at all. 0 or -errno. */
static int continue_run(struct attachment *att, const struct fault *fault, uint64_t start,
                        uint64_t end)
{
    uint64_t mapped = 0, step = end - start;

    touched_mark(&att->mm, att->slot, start, end - start);
    while (start < end) {
        struct uffdio_continue run = {
            .range = {(uintptr_t)attachment_at(att, start),
                      step < end - start ? step : end - start},
            .mode = UFFDIO_CONTINUE_MODE_DONTWAKE | (fault->protect ? UFFDIO_CONTINUE_MODE_WP : 0),
        };
        int err = ioctl(att->uffd, UFFDIO_CONTINUE, &run) ? errno : 0;

        if (run.mapped > 0) {
            mapped += (uint64_t)run.mapped;
            start += (uint64_t)run.mapped;
        } else if (err == ENOENT && run.range.len > PAGE_SIZE) {
            step = PAGE_SIZE;
        } else if (err == EEXIST || err == EFAULT || err == ENOENT) {
            if (err != EEXIST && start == fault->offset && release(att, fault) < 0)
                return -EUCLEAN;
            start += PAGE_SIZE;
        } else if (err != EAGAIN) { /* EAGAIN: the mappings are changing, try again */
            return -err;
        }
    }
    count_add(&counts_of(att)->materialised, mapped / PAGE_SIZE);
    return 0;
}

/* The end of the run of equal bits that begins at page `from`. */
static uint64_t run_end(const uint64_t *bits, uint64_t from, uint64_t pages)
{
    bool kind = bits[from / 64] >> from % 64 & 1;

    do
        from++;
    while (from < pages && (bits[from / 64] >> from % 64 & 1) == kind);
    return from;
}

static int map_present(struct attachment *att, const struct fault *fault)
{
    uint64_t pages = (fault->end - fault->start) / PAGE_SIZE;
    uint64_t own = (fault->offset - fault->start) / PAGE_SIZE;
    int err = 0;

    for (uint64_t page = 0, end; !err && page < pages; page = end) {
        end = run_end(fault->present, page, pages);
        if (fault->present[page / 64] >> page % 64 & 1)
            err = continue_run(att, fault, fault->start + page * PAGE_SIZE,
                               fault->start + end * PAGE_SIZE);
        if (page <= own && own < end)
            att->around.next = fault->start + end * PAGE_SIZE;
    }
    return err;
}

/* A sequential run that has come to the end of its span goes on over the present pages behind
 * it, up to the first one that we have mapped. Not with a budget, which counts spans by their
 * faults. */
static int map_ahead(struct attachment *att, const struct fault *fault, uint64_t end)
{
    const uint64_t start = (fault->offset & ~(PMD_SIZE - 1)) + PMD_SIZE;
    const uint64_t quantum_end = (fault->offset / att->mm.quantum + 1) * att->mm.quantum;
    uint64_t mapped = start, stop;

    end = end < quantum_end ? end : quantum_end; /* the next quantum is not linked yet */
    end = end < fault->vma.end ? end : fault->vma.end;
    if (att->around.next != start || start >= end || fault->filled || att->budget.spans)
        return 0;
    if (touched_run(&att->mm, att->slot, &mapped, end, &stop))
        end = mapped;
    end = present_end(&att->mm, start, end);
    att->around.next = end;
    return start < end ? continue_run(att, fault, start, end) : 0;
}

/* Whether pages that are there are to be mapped ahead of the program, and not left to Linux. */
static bool maps_ahead(const struct attachment *att, const struct fault *fault, uint64_t flags)
{
    return flags & UFFD_PAGEFAULT_FLAG_MINOR && handover_sequential_write(att, fault);
}

static int make_reachable(struct attachment *att, const struct fault *fault, uint64_t flags)
{
    int err = 0;

    if (flags & UFFD_PAGEFAULT_FLAG_WP) {
        struct uffdio_writeprotect off = {
            .range = {(uintptr_t)attachment_at(att, fault->offset), PAGE_SIZE},
            .mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
        return ioctl(att->uffd, UFFDIO_WRITEPROTECT, &off) ? -errno : 0;
    }
    if (!(flags & UFFD_PAGEFAULT_FLAG_MINOR))
        err = fault_make_pages(fault, att->mem_fd);
    if (err)
        return err;
    if (!maps_ahead(att, fault, flags) && handover_absent(att, fault))
        return 0;
    if (handover(att, fault))
        return 0;
    err = map_present(att, fault);
    return err ? err : map_ahead(att, fault, fault->offset + att->around.pages * PAGE_SIZE);
}

static int reach_object(struct attachment *att, struct fault *fault)
{
    int64_t pages = object_map(att, fault);

    if (pages > 0)
        count_add(&counts_of(att)->materialised, (uint64_t)pages);
    return pages < 0 ? (int)pages : 0;
}

/* What becomes of a fault if something went wrong in that step. */
static enum fault_verdict verdict_of(struct fault *fault, const char *step, int err,
                                     enum fault_verdict otherwise)
{
    if (!err)
        return otherwise;
    fault->step = step;
    fault->error = err;
    return err == -EINPROGRESS ? FAULT_LATER : err == -EAGAIN ? FAULT_WAIT : FAULT_BROKEN;
}

/* The same for a reader: the server does the first part, whatever we see in the tables. `look` is
 * what they say. */
static enum fault_verdict ask(struct attachment *att, struct fault *fault, uint64_t flags,
                              enum fault_verdict look)
{
    int err = 0;

    if (fault->access == ACCESS_WRITE) { /* the program has given itself the right */
        fault->vma = (struct mm_vma){.flags = VMA_READ};
        return FAULT_ACCERR;
    }
    if (look == FAULT_WAIT)
        return look;
    if (look != FAULT_MAP)
        fault->vma = (struct mm_vma){0};
    if (fault->vma.object)
        err = object_find(att, fault);
    else
        around_choose(&att->around, fault, flags & UFFD_PAGEFAULT_FLAG_MINOR,
                      touched_has(&att->mm, att->slot, fault->offset), att->mm.fault_around);
    if (!err)
        err = reader_ask(att, fault, flags & UFFD_PAGEFAULT_FLAG_MINOR);
    return verdict_of(fault, "asking the server", err, FAULT_LATER);
}

/* An access that the program has permitted itself, and the region has not: the shared tables have
 * no part in it. */
static enum fault_verdict reach_alone(struct attachment *att, struct fault *fault, uint64_t flags)
{
    const char *step = "mapping it";
    int err = 0;

    if (att->charged && !(flags & FLAGS_PRESENT)) {
        fault->fill = 1;
        return verdict_of(fault, "asking for the page",
                          charge_pages(att, fault, false, att->around.pages), FAULT_LATER);
    }
    fault->start = fault->offset;
    fault->end = fault->offset + PAGE_SIZE;
    fault->protect = fault->access != ACCESS_WRITE;
    if (flags & UFFD_PAGEFAULT_FLAG_WP)
        return verdict_of(fault, step, make_reachable(att, fault, flags), FAULT_MAP);
    if (!(flags & UFFD_PAGEFAULT_FLAG_MINOR))
        err = fault_make_range(att->mem_fd, fault->offset, PAGE_SIZE);
    if (!err)
        err = continue_run(att, fault, fault->start, fault->end);
    return verdict_of(fault, step, err, FAULT_MAP);
}

/* Pages that are to be mapped ahead of the program get their entries first, if Linux has filled
 * them. */
static int enter_ahead(struct attachment *att, const struct fault *fault, uint64_t flags)
{
    const uint64_t span = fault->offset & ~(PMD_SIZE - 1);

    if (!maps_ahead(att, fault, flags) || !entries_by_linux(&att->mm) ||
        present_end(&att->mm, fault->offset, fault->offset + PAGE_SIZE) != fault->offset)
        return 0;
    const int64_t found = entries_catch_up(&att->mm, att->slot, att->mem_fd, span, span + PMD_SIZE,
                                           ENTRIES_NOW);

    return found < 0 ? (int)found : 0;
}

/* First the host mm's part, then the real MMU's; between slot_enter() and slot_leave(). */
static enum fault_verdict handle(struct attachment *att, struct fault *fault, uint64_t flags)
{
    enum fault_verdict verdict = fault_look(&att->mm, fault);
    const char *step = "asking for the file";
    const uint64_t ahead = att->around.pages;
    int err = 0;

    if (att->reader)
        return ask(att, fault, flags, verdict);
    if (verdict == FAULT_ACCERR && private_permits(att, fault))
        return reach_alone(att, fault, flags);
    if (verdict != FAULT_MAP)
        return verdict;
    if (!fault->vma.object) {
        around_choose(&att->around, fault, flags & UFFD_PAGEFAULT_FLAG_MINOR,
                      touched_has(&att->mm, att->slot, fault->offset), att->mm.fault_around);
        handover_clip(att, fault);
        err = enter_ahead(att, fault, flags);
        if (!err && att->charged)
            err = charge_pages(att, fault, flags & FLAGS_PRESENT, ahead);
    } else {
        err = object_find(att, fault);
    }
    if (!err)
        verdict = fault_fill(&att->mm, att->slot, fault);
    if (!err && verdict == FAULT_MAP) {
        counts_fault(att, fault);
        step = "mapping it";
        err = fault->vma.object ? reach_object(att, fault) : make_reachable(att, fault, flags);
    }
    return verdict_of(fault, step, err, verdict);
}

static bool is_refused(enum fault_verdict verdict)
{
    return verdict == FAULT_MAPERR || verdict == FAULT_ACCERR || verdict == FAULT_BROKEN;
}

static void refuse(struct attachment *att, const struct fault *fault, enum fault_verdict verdict)
{
    if (release(att, fault) > 0) /* nobody has refused that access */
        return;
    if (verdict == FAULT_BROKEN)
        trouble_tell(fault);
    poison_page(att, fault, verdict);
    if (att->reader) /* the server asks those that have guard pages to remove them */
        reader_report(att);
}

static void wait_a_moment(void)
{
    const struct timespec moment = {.tv_nsec = 20000};

    nanosleep(&moment, NULL);
}

/* What follows when the host mm and the real MMU have had their part. */
static void let_go_on(struct attachment *att, const struct fault *fault, enum fault_verdict verdict)
{
    if (verdict == FAULT_LATER)
        return;
    /* The thread faults again and we come back here. In between we can answer the
     * server, which may be waiting for just that. */
    if (verdict == FAULT_WAIT)
        wait_a_moment();
    wake_for(att, fault);
    /* We cannot give back a span with objects in it by ourselves. */
    if (!fault->vma.object)
        budget_fault(att, fault->offset, verdict == FAULT_MAP && !fault->filled);
}

void resolve_fault(struct attachment *att, uint64_t addr, uint64_t flags)
{
    const uint64_t offset = attachment_offset(att, addr) & ~(PAGE_SIZE - 1);
    struct fault fault = {
        .offset = offset,
        .access = flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP) ? ACCESS_WRITE
                                                                               : ACCESS_READ,
        .start = offset,
        .end = offset + PAGE_SIZE,
        .fill = 1,
    };
    enum fault_verdict verdict;

    /* The program has unmapped it since: the memory there now is not ours. */
    if (is_adopted(att) && !pieces_hold(&att->pieces, addr))
        return wake_for(att, &fault);
    if (att->unshared.count && unshared_at(&att->unshared, offset) == UNSHARED_GONE) {
        own_release(att, offset);
        return wake_for(att, &fault);
    }
    slot_enter(&att->mm, att->slot);
    verdict = handle(att, &fault, flags);
    if (verdict == FAULT_MAPERR && is_adopted(att))
        verdict = FAULT_BROKEN; /* mremap(2) has made the window longer than the region: SIGBUS */
    if (is_refused(verdict))
        refuse(att, &fault, verdict);
    slot_leave(&att->mm, att->slot);
    let_go_on(att, &fault, verdict);
}

/* The part of the real MMU: the server has made the pages. */
static int reach_told(struct attachment *att, struct answer *answer)
{
    struct fault *fault = &answer->fault;
    int err;

    counts_fault(att, fault);
    if (fault->vma.object) /* let go of since we asked: the thread faults again */
        return object_held(att, fault->vma.object) ? reach_object(att, fault) : -EAGAIN;
    err = map_present(att, fault);
    if (!err)
        err = map_ahead(att, fault, answer->ahead);
    return reader_confirm(att, answer) ? err : -EAGAIN;
}

void resolve_told(struct attachment *att, const struct msg *msg)
{
    struct answer answer;

    if (!reader_told(att, msg, &answer))
        return;
    if (answer.verdict == FAULT_MAP)
        answer.verdict = verdict_of(&answer.fault, "mapping it", reach_told(att, &answer),
                                    FAULT_MAP);
    if (is_refused(answer.verdict))
        refuse(att, &answer.fault, answer.verdict);
    let_go_on(att, &answer.fault, answer.verdict);
}

void resolve_charged(struct attachment *att, const struct msg *msg)
{
    struct fault fault;
    const int err = charge_told(att, msg, &fault);

    if (err == -ESRCH)
        return;
    if (err && err != -EAGAIN) {
        const struct fault page = {.offset = fault.offset,
                                   .start = fault.offset,
                                   .end = fault.offset + PAGE_SIZE,
                                   .step = fault.step,
                                   .error = err};

        slot_enter(&att->mm, att->slot);
        refuse(att, &page, err == -ENOMEM ? FAULT_MAPERR : FAULT_BROKEN);
        slot_leave(&att->mm, att->slot);
    }
    if (err == -EAGAIN)
        wait_a_moment();
    wake_for(att, &fault);
}

int resolve_revoke(struct attachment *att, uint64_t start, uint64_t end, bool objects)
{
    int err = 0;

    if (start > end || end > att->mm.size)
        return -EINVAL;
    if (!attachment_clip(att, &start, &end))
        return 0;
    trace_revoke(&att->mm, trace_pid(&att->mm, att->slot), start, end - start);
    if (objects && !is_adopted(att)) {
        objects_drop(att);
        return arrange(att, start, end, true);
    }
    if (!is_adopted(att))
        return own_drop(att, start, end);
    end = (uintptr_t)attachment_at(att, end);
    start = (uintptr_t)attachment_at(att, start);
    for (unsigned i = 0; i < att->pieces.count && !err; i++) {
        const struct piece *piece = &att->pieces.list[i];
        const uint64_t from = start > piece->start ? start : piece->start;
        const uint64_t to = end < piece->end ? end : piece->end;

        if (from < to)
            err = view_drop(from, to);
    }
    return err;
}
