/*
 * poison.c - guard pages: made to fault natively, so that a refused access ends in the
 * signal the kernel would give, in the thread that made it.
 *
 * A hole gets a guard marker (madvise(2), Linux 6.15): SEGV_MAPERR, and no gap in the
 * window that an mmap(2) of the program could fall into. When something is mapped
 * there, the server asks us to remove the guard pages (REARM). If there are too many,
 * the oldest is removed, which is harmless: its next fault comes to us. Blocks of mapped
 * objects need none, because there the kernel refuses by itself.
 *
 * Runs on the service thread: no malloc, no stdio, no region memory.
 */
#define _GNU_SOURCE
#include "client/poison.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/counts.h"
#include "client/own.h"
#include "client/spare.h"
#include "client/view.h"
#include "core/slots.h"
#include "core/touched.h"
#include "core/trace.h"
#include "core/uffd.h"
#include "core/vma.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
/* linux/userfaultfd.h, since 6.6. */
#ifndef UFFDIO_POISON
struct uffdio_poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

/* No .mem is ever that long. */
#define NOWHERE ((off_t)1 << 62)

/* The rights of a page that is a guard page no more. A block of an object may have been mapped
 * between the fault that was refused and its answer. It is to keep its rights, and then so may
 * the window: in a span that was touched the server has it arranged anew before they change. */
static int prot_at(const struct attachment *att, uint64_t offset)
{
    struct mm_vma vma;

    if (!vma_find(&att->mm, offset, &vma) && vma.object && touched_has(&att->mm, att->slot, offset))
        return view_block_prot(att, vma.flags, offset);
    return view_prot_at(att, offset);
}

struct unpoison {
    struct attachment *att;
    enum poison_kind kind;
};

static int unpoison_own(void *arg, uint64_t start, uint64_t end)
{
    struct attachment *att = ((const struct unpoison *)arg)->att;
    uint8_t *page = attachment_at(att, start);
    const int prot = prot_at(att, start);

    switch (((const struct unpoison *)arg)->kind) {
    case POISON_GUARD:
        madvise(page, PAGE_SIZE, MADV_GUARD_REMOVE);
        break;
    case POISON_PROT:
        mprotect(page, PAGE_SIZE, prot);
        break;
    case POISON_MARK:
        view_drop((uintptr_t)page, (uintptr_t)page + PAGE_SIZE);
        break;
    case POISON_BUS:
        /* It must not be accessed before it is watched, as in view_map(). */
        view_map_part(att, start, end);
        uffd_watch(att->uffd, (uintptr_t)page, PAGE_SIZE);
        mprotect(page, PAGE_SIZE, prot);
        break;
    }
    return 0;
}

static void unpoison(struct attachment *att, struct poison poison)
{
    struct unpoison page = {att, poison.kind};

    if (is_adopted(att))
        unpoison_own(&page, poison.offset, poison.offset + PAGE_SIZE);
    else
        own_each(att, own_maps(att), OWN_MEMORY, poison.offset, poison.offset + PAGE_SIZE,
                 unpoison_own, &page);
}

static struct poison take_oldest(struct attachment *att)
{
    struct poison oldest = att->poisons[att->poisons_at];

    att->poisons_at = (att->poisons_at + 1) % POISONS_MAX;
    att->poisons_used--;
    return oldest;
}

static void put_newest(struct attachment *att, struct poison poison)
{
    att->poisons[(att->poisons_at + att->poisons_used++) % POISONS_MAX] = poison;
}

static void publish_poisoned(const struct attachment *att)
{
    atomic_store(&att->mm.slots[att->slot].poisoned, (uint8_t)att->poisons_used);
}

static void remember_poison(struct attachment *att, struct poison poison)
{
    if (att->poisons_used == POISONS_MAX)
        unpoison(att, take_oldest(att));
    put_newest(att, poison);
    publish_poisoned(att);
}

/* A guard marker: SIGSEGV, SEGV_MAPERR. */
static bool guard(const struct attachment *att, uint8_t *page)
{
    struct uffdio_writeprotect off = {.range = {(uintptr_t)page, PAGE_SIZE}};

    /* Punching a write-protected page out of the file leaves a marker, which
     * madvise() cannot replace: it would try again for ever. */
    ioctl(att->uffd, UFFDIO_WRITEPROTECT, &off);
    if (!madvise(page, PAGE_SIZE, MADV_GUARD_INSTALL))
        return true;
    /* A locked mapping takes no guard marker. Nothing of a window is ever locked in the series; and
     * mlockall(2) would otherwise come from each such page to the next. */
    return !munlock(is_adopted(att) ? page : att->base,
                    is_adopted(att) ? PAGE_SIZE : att->length) &&
           !madvise(page, PAGE_SIZE, MADV_GUARD_INSTALL);
}

/* Without a change of any mapping, of which there may be no more, or which may be sealed: SIGBUS,
 * BUS_MCEERR_AR. */
static bool mark(const struct attachment *att, uint8_t *page)
{
    struct uffdio_poison range = {.range = {(uintptr_t)page, PAGE_SIZE}};

    return !ioctl(att->uffd, UFFDIO_POISON, &range) ||
           (!view_drop(range.range.start, range.range.start + PAGE_SIZE) &&
            !ioctl(att->uffd, UFFDIO_POISON, &range));
}

/* Far behind the end of .mem: SIGBUS, BUS_ADRERR. */
bool poison_nothing(const struct attachment *att, uint8_t *page)
{
    return mmap(page, PAGE_SIZE, att->prot, view_flags(att) | MAP_FIXED, att->mem_fd, NOWHERE) !=
           MAP_FAILED;
}

/* The rights that a page keeps, for SEGV_ACCERR. */
static int refusing_prot(const struct attachment *att, const struct fault *fault,
                         enum fault_verdict verdict)
{
    const uint32_t rights = verdict == FAULT_ACCERR ? fault->vma.flags & VMA_PROT : 0;

    if (!rights)
        return PROT_NONE;
    return (att->prot & ~PROT_WRITE) | (rights & VMA_EXEC ? PROT_EXEC : 0);
}

/* The best way that is possible now; false: there is none. */
static bool refuse(struct attachment *att, const struct fault *fault, enum fault_verdict verdict,
                   enum poison_kind *kind)
{
    uint8_t *page = attachment_at(att, fault->offset);

    *kind = POISON_BUS;
    if (verdict == FAULT_BROKEN && poison_nothing(att, page))
        return true;
    *kind = POISON_GUARD;
    if (verdict == FAULT_MAPERR && guard(att, page))
        return true;
    *kind = POISON_PROT;
    return !mprotect(page, PAGE_SIZE, refusing_prot(att, fault, verdict));
}

void poison_page(struct attachment *att, const struct fault *fault, enum fault_verdict verdict)
{
    uint8_t *page = attachment_at(att, fault->offset);
    struct poison made = {fault->offset, POISON_PROT};
    bool done = refuse(att, fault, verdict, &made.kind);

    /* A process that has as many mappings as it may have: first our own pages are joined with
     * their neighbours again, which takes none, then the reserve goes. */
    for (; !done && att->poisons_used; done = refuse(att, fault, verdict, &made.kind))
        unpoison(att, take_oldest(att));
    if (!done) {
        spare_give(att->spare);
        done = refuse(att, fault, verdict, &made.kind);
    }
    /* A signal, always: rather one with another code than a thread that faults for ever. */
    if (!done) {
        made.kind = guard(att, page) ? POISON_GUARD : POISON_MARK;
        if (made.kind == POISON_MARK)
            mark(att, page);
    }
    remember_poison(att, made);
    count_add(&counts_of(att)->segv, 1);
    trace_refused(&att->mm, trace_pid(&att->mm, att->slot), fault->offset, PAGE_SIZE);
}

static void take_back(struct attachment *att, uint64_t start, uint64_t end, bool undo)
{
    for (unsigned left = att->poisons_used; left; left--) {
        struct poison poison = take_oldest(att);

        if (poison.offset < start || poison.offset >= end)
            put_newest(att, poison);
        else if (undo)
            unpoison(att, poison);
    }
    publish_poisoned(att);
}

void poison_rearm(struct attachment *att, uint64_t start, uint64_t end)
{
    spare_take(att->spare);
    slot_enter(&att->mm, att->slot);
    take_back(att, start, end, true);
    slot_leave(&att->mm, att->slot);
}

void poison_forget(struct attachment *att, uint64_t start, uint64_t end)
{
    if (att->poisons_used)
        take_back(att, start, end, false);
}
