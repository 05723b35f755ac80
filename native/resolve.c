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

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif

/* Entries of one shared PTE page: no run needs to be longer. */
#define WINDOW_MAX 512

static void add(_Atomic uint64_t *counter, uint64_t n)
{
    /* One writer: a plain load and store is enough, and readers see no tear. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static void wake(const struct attachment *att, uint64_t offset)
{
    struct uffdio_range page = {(uintptr_t)att->base + offset, PAGE_SIZE};

    ioctl(att->uffd, UFFDIO_WAKE, &page);
}

/* Maps present pages of [offset, offset + bytes); the first must get there, the
 * rest may stop early. Returns the bytes covered or -errno. */
static int64_t continue_run(struct attachment *att, uint64_t offset, uint64_t bytes, bool protect)
{
    uint64_t done = 0;

    while (done < bytes) {
        struct uffdio_continue run = {
            .range = {(uintptr_t)att->base + offset + done, bytes - done},
            .mode = protect ? UFFDIO_CONTINUE_MODE_WP : 0,
        };
        int err = ioctl(att->uffd, UFFDIO_CONTINUE, &run) ? errno : 0;

        if (run.mapped > 0) {
            add(&att->mm.slots[att->slot].counters.materialised, run.mapped / PAGE_SIZE);
            done += run.mapped;
        } else if (err == EEXIST) { /* another thread's fault was faster */
            done += PAGE_SIZE;
        } else if (err == EFAULT && done == 0) { /* no page yet */
            if (fallocate(att->mem_fd, 0, (off_t)offset, PAGE_SIZE))
                return -errno;
        } else if (err != EAGAIN) { /* EAGAIN: the mappings are changing, again */
            return done ? (int64_t)done : -err;
        }
    }
    return (int64_t)done;
}

static int make_reachable(struct attachment *att, const struct fault *fault, uint64_t flags)
{
    if (flags & UFFD_PAGEFAULT_FLAG_WP) {
        struct uffdio_writeprotect off = {
            .range = {(uintptr_t)att->base + fault->offset, PAGE_SIZE}};
        return ioctl(att->uffd, UFFDIO_WRITEPROTECT, &off) ? -errno : 0;
    }
    if (!(flags & UFFD_PAGEFAULT_FLAG_MINOR) &&
        fallocate(att->mem_fd, 0, (off_t)fault->offset, PAGE_SIZE))
        return -errno;
    int64_t done = continue_run(att, fault->offset, fault->pages * PAGE_SIZE, fault->protect);
    if (done < 0)
        return (int)done;
    att->next = fault->offset + (uint64_t)done;
    return 0;
}

static void count(struct attachment *att, const struct fault *fault)
{
    struct mm_counters *counters = &att->mm.slots[att->slot].counters;
    uint64_t quantum = fault->offset / att->mm.quantum;
    uint64_t bit = 1ull << quantum % 64;

    if (fault->first)
        add(&counters->faults, 1);
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

    /* Sequential access earns a longer run, as readahead does; anything else
     * starts over, so that random access pays for what it touches only. */
    if (fault.offset != att->next || !att->window)
        att->window = 1;
    else if (att->window < WINDOW_MAX)
        att->window *= 2;
    fault.ahead = att->window;

    for (;;) {
        slot_enter(&att->mm, att->slot);
        verdict = mm_fault(&att->mm, att->slot, &fault);
        if (verdict != FAULT_WAIT)
            break;
        slot_leave(&att->mm, att->slot);
        nanosleep(&moment, NULL);
    }
    if (verdict == FAULT_MAP) {
        count(att, &fault);
        if (make_reachable(att, &fault, flags))
            verdict = FAULT_BROKEN;
    }
    /* Poison inside the epoch: a server that maps something here afterwards
     * waits for us and then sees it. */
    if (verdict != FAULT_MAP)
        poison(att, &fault, verdict);
    slot_leave(&att->mm, att->slot);
    wake(att, fault.offset);
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
