/*
 * resolve.c - one userfaultfd event, answered: host mm first, then the real MMU.
 *
 *   event     page in .mem   what makes it reachable
 *   MISSING   no             fallocate, CONTINUE
 *   MINOR     yes            CONTINUE, over the present entries that follow when
 *                            the accesses are sequential
 *   WP        mapped         WRITEPROTECT off
 *
 * A refused access must end in the signal the kernel would give, in the thread
 * that made it: the page is made to fault natively ("poisoned") and the thread
 * is woken. A hole gets a guard marker (madvise(2), Linux 6.15): SEGV_MAPERR, no
 * gap in the window that an mmap(2) of the program could fall into. The server
 * asks for poison back (REARM) when something is mapped there; the oldest goes
 * when there are too many, which is harmless: its next fault comes to us.
 *
 * Runs on the service thread: no malloc, no stdio, no region memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "attachment.h"
#include "fault.h"
#include "touched.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif

static void add(_Atomic uint64_t *counter, uint64_t n)
{
    /* One writer: a plain load and store is enough, and readers see no tear. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

/* Nothing here wakes by itself: a thread goes on only when its fault has left the
 * epoch, so that a process that is stopped after an access holds nobody up. */
static void wake(const struct attachment *att, const struct fault *fault)
{
    struct uffdio_range looked_at = {(uintptr_t)att->base + fault->start,
                                     fault->end - fault->start};

    ioctl(att->uffd, UFFDIO_WAKE, &looked_at);
}

/* Maps the pages of [start, end), which have entries. Passed over: a page that is
 * absent (its filler died), mapped already, or not in the window any more. A
 * poisoned page may have split the window, and a call fails over a split: then
 * page by page. 0 or -errno. */
static int continue_run(struct attachment *att, uint64_t start, uint64_t end, bool protect)
{
    uint64_t mapped = 0, step = end - start;

    touched_mark(&att->mm, att->slot, start, end - start);
    while (start < end) {
        struct uffdio_continue run = {
            .range = {(uintptr_t)att->base + start, step < end - start ? step : end - start},
            .mode = UFFDIO_CONTINUE_MODE_DONTWAKE | (protect ? UFFDIO_CONTINUE_MODE_WP : 0),
        };
        int err = ioctl(att->uffd, UFFDIO_CONTINUE, &run) ? errno : 0;

        if (run.mapped > 0) {
            mapped += (uint64_t)run.mapped;
            start += (uint64_t)run.mapped;
        } else if (err == ENOENT && run.range.len > PAGE_SIZE) {
            step = PAGE_SIZE;
        } else if (err == EEXIST || err == EFAULT || err == ENOENT) {
            start += PAGE_SIZE;
        } else if (err != EAGAIN) { /* EAGAIN: the mappings are changing, again */
            return -err;
        }
    }
    add(&att->mm.slots[att->slot].counters.materialised, mapped / PAGE_SIZE);
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
            err = continue_run(att, fault->start + page * PAGE_SIZE,
                               fault->start + end * PAGE_SIZE, fault->protect);
        if (page <= own && own < end)
            att->around.next = fault->start + end * PAGE_SIZE;
    }
    return err;
}

static int make_reachable(struct attachment *att, const struct fault *fault, uint64_t flags)
{
    uint64_t fresh = fault->filled > 1 ? fault->filled : 1;

    if (flags & UFFD_PAGEFAULT_FLAG_WP) {
        struct uffdio_writeprotect off = {
            .range = {(uintptr_t)att->base + fault->offset, PAGE_SIZE},
            .mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
        return ioctl(att->uffd, UFFDIO_WRITEPROTECT, &off) ? -errno : 0;
    }
    /* Memory for what was filled ahead may be short; for the page itself it must not. */
    if (!(flags & UFFD_PAGEFAULT_FLAG_MINOR) &&
        fallocate(att->mem_fd, 0, (off_t)fault->offset, (off_t)(fresh * PAGE_SIZE)) &&
        fallocate(att->mem_fd, 0, (off_t)fault->offset, PAGE_SIZE))
        return -errno;
    return map_present(att, fault);
}

static void count(struct attachment *att, const struct fault *fault)
{
    struct mm_counters *counters = &att->mm.slots[att->slot].counters;
    uint64_t quantum = fault->offset / att->mm.quantum;
    uint64_t bit = 1ull << quantum % 64;

    if (fault->filled) {
        add(&counters->faults, 1);
        add(&counters->prefaulted, fault->filled - 1);
    }
    if (!(att->linked[quantum / 64] & bit)) {
        att->linked[quantum / 64] |= bit;
        add(&counters->links, 1);
    }
}

static void unpoison(struct attachment *att, struct poison poison)
{
    uint8_t *page = att->base + poison.offset;

    switch (poison.kind) {
    case POISON_GUARD:
        madvise(page, PAGE_SIZE, MADV_GUARD_REMOVE);
        break;
    case POISON_PROT:
        mprotect(page, PAGE_SIZE, att->prot);
        break;
    case POISON_BUS:
        mmap(page, PAGE_SIZE, att->prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, att->mem_fd,
             (off_t)poison.offset);
        attach_register(att, page, PAGE_SIZE);
        /* Whatever came in between the two calls came without us. */
        madvise(page, PAGE_SIZE, MADV_DONTNEED);
        break;
    }
}

static struct poison take_oldest(struct attachment *att)
{
    struct poison oldest = att->poisons[att->poisons_at];

    att->poisons_at = (att->poisons_at + 1) % POISONS_MAX;
    att->poisons_used--;
    return oldest;
}

static void remember(struct attachment *att, struct poison poison)
{
    if (att->poisons_used == POISONS_MAX)
        unpoison(att, take_oldest(att));
    att->poisons[(att->poisons_at + att->poisons_used++) % POISONS_MAX] = poison;
    atomic_store(&att->mm.slots[att->slot].poisoned, att->poisons_used);
}

/* A guard marker: SIGSEGV, SEGV_MAPERR. */
static bool guard(const struct attachment *att, uint8_t *page)
{
    struct uffdio_writeprotect off = {.range = {(uintptr_t)page, PAGE_SIZE}};

    /* Punching a write-protected page out of the file leaves a marker of that,
     * which madvise() cannot replace: it would try again for ever. */
    ioctl(att->uffd, UFFDIO_WRITEPROTECT, &off);
    /* A locked mapping (mlockall) takes no guard. */
    return !madvise(page, PAGE_SIZE, MADV_GUARD_INSTALL) ||
           (!munlock(page, PAGE_SIZE) && !madvise(page, PAGE_SIZE, MADV_GUARD_INSTALL));
}

/* Past the end of an empty file: SIGBUS, BUS_ADRERR. */
static bool map_nothing(const struct attachment *att, uint8_t *page)
{
    int empty = memfd_create("msharefs-sigbus", MFD_CLOEXEC);

    if (empty < 0)
        return false;
    bool done = mmap(page, PAGE_SIZE, att->prot, MAP_SHARED | MAP_FIXED, empty, 0) != MAP_FAILED;
    close(empty);
    return done;
}

static void poison(struct attachment *att, const struct fault *fault, enum fault_verdict verdict)
{
    uint8_t *page = att->base + fault->offset;
    struct poison made = {fault->offset, POISON_PROT};

    if (verdict == FAULT_MAPERR) {
        if (guard(att, page))
            made.kind = POISON_GUARD;
    } else if (verdict == FAULT_BROKEN) {
        if (map_nothing(att, page))
            made.kind = POISON_BUS;
    }
    if (made.kind == POISON_PROT) {
        bool readable = verdict == FAULT_ACCERR && fault->vma.flags & VMA_PROT;
        mprotect(page, PAGE_SIZE, readable ? att->prot & ~PROT_WRITE : PROT_NONE);
    }
    remember(att, made);
    add(&att->mm.slots[att->slot].counters.segv, 1);
}

void resolve_fault(struct attachment *att, uint64_t addr, uint64_t flags)
{
    const struct timespec moment = {.tv_nsec = 20000};
    struct fault fault = {
        .offset = (addr - (uintptr_t)att->base) & ~(PAGE_SIZE - 1),
        .access = flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP) ? ACCESS_WRITE
                                                                              : ACCESS_READ,
    };
    enum fault_verdict verdict;

    around_choose(&att->around, &fault, flags & UFFD_PAGEFAULT_FLAG_MINOR, att->mm.fault_around);
    /* Unmapped since: what is there now is not ours. */
    if (att->adopted && !pieces_hold(&att->pieces, addr))
        return wake(att, &fault);
    slot_enter(&att->mm, att->slot);
    verdict = mm_fault(&att->mm, att->slot, &fault);
    if (verdict == FAULT_WAIT) {
        /* The thread faults again and we come back: in between we can answer the
         * server, which may be waiting for just that. */
        slot_leave(&att->mm, att->slot);
        nanosleep(&moment, NULL);
        wake(att, &fault);
        return;
    }
    if (verdict == FAULT_MAP) {
        count(att, &fault);
        if (make_reachable(att, &fault, flags))
            verdict = FAULT_BROKEN;
    }
    if (verdict == FAULT_MAPERR && att->adopted)
        verdict = FAULT_BROKEN; /* mremap(2) has made it longer than it is: SIGBUS */
    /* Poison inside the epoch: a server that maps something here afterwards
     * waits for us and then sees it. */
    if (verdict != FAULT_MAP)
        poison(att, &fault, verdict);
    slot_leave(&att->mm, att->slot);
    wake(att, &fault);
    budget_fault(att, fault.offset, verdict == FAULT_MAP && !fault.filled);
}

void resolve_rearm(struct attachment *att, uint64_t start, uint64_t end)
{
    for (unsigned left = att->poisons_used; left; left--) {
        struct poison poison = take_oldest(att);

        if (poison.offset >= start && poison.offset < end)
            unpoison(att, poison);
        else
            att->poisons[(att->poisons_at + att->poisons_used++) % POISONS_MAX] = poison;
    }
    atomic_store(&att->mm.slots[att->slot].poisoned, att->poisons_used);
}

static int let_go(uint64_t start, uint64_t end)
{
    /* ENOMEM: the program has unmapped a part of its window; the rest is done. */
    return madvise((void *)start, end - start, MADV_DONTNEED_LOCKED) && errno != ENOMEM ? -errno : 0;
}

int resolve_revoke(struct attachment *att, uint64_t start, uint64_t end)
{
    int err = 0;

    if (start > end || end > att->mm.size)
        return -EINVAL;
    start += (uintptr_t)att->base;
    end += (uintptr_t)att->base;
    if (!att->adopted)
        return let_go(start, end);
    for (unsigned i = 0; i < att->pieces.count && !err; i++) {
        const struct piece *piece = &att->pieces.list[i];
        const uint64_t from = start > piece->start ? start : piece->start;
        const uint64_t to = end < piece->end ? end : piece->end;

        if (from < to)
            err = let_go(from, to);
    }
    return err;
}
