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
#include "client/view.h"
#include "core/slots.h"
#include "core/touched.h"
#include "core/uffd.h"
#include "core/vma.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

/* The rights of a page that is a guard page no more. A block of an object may have been mapped
 * between the fault that was refused and its answer. It is to keep its rights, and then so may
 * the window: in a span that was touched the server has it arranged anew before they change. */
static int prot_at(const struct attachment *att, uint64_t offset)
{
    struct mm_vma vma;

    if (!vma_find(&att->mm, offset, &vma) && vma.object && touched_has(&att->mm, att->slot, offset))
        return view_block_prot(att, vma.flags);
    return view_prot_at(att, offset);
}

static void unpoison(struct attachment *att, struct poison poison)
{
    uint8_t *page = att->base + poison.offset;
    const int prot = prot_at(att, poison.offset);

    switch (poison.kind) {
    case POISON_GUARD:
        madvise(page, PAGE_SIZE, MADV_GUARD_REMOVE);
        break;
    case POISON_PROT:
        mprotect(page, PAGE_SIZE, prot);
        break;
    case POISON_BUS:
        /* It must not be accessed before it is watched, as in view_map(). */
        mmap(page, PAGE_SIZE, PROT_NONE, view_flags(att) | MAP_FIXED, att->mem_fd,
             (off_t)poison.offset);
        uffd_watch(att->uffd, (uintptr_t)page, PAGE_SIZE);
        mprotect(page, PAGE_SIZE, prot);
        if (!is_adopted(att))
            madvise(page, PAGE_SIZE, MADV_DONTDUMP);
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

static void put_newest(struct attachment *att, struct poison poison)
{
    att->poisons[(att->poisons_at + att->poisons_used++) % POISONS_MAX] = poison;
}

static void publish_poisoned(const struct attachment *att)
{
    atomic_store(&att->mm.slots[att->slot].poisoned, att->poisons_used);
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
    /* A locked mapping (mlockall) takes no guard marker. */
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

/* The rights that a page keeps, for SEGV_ACCERR. */
static int refusing_prot(const struct attachment *att, const struct fault *fault,
                         enum fault_verdict verdict)
{
    const uint32_t rights = verdict == FAULT_ACCERR ? fault->vma.flags & VMA_PROT : 0;

    if (!rights)
        return PROT_NONE;
    return (att->prot & ~PROT_WRITE) | (rights & VMA_EXEC ? PROT_EXEC : 0);
}

void poison_page(struct attachment *att, const struct fault *fault, enum fault_verdict verdict)
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
    if (made.kind == POISON_PROT)
        mprotect(page, PAGE_SIZE, refusing_prot(att, fault, verdict));
    remember_poison(att, made);
    count_add(&counts_of(att)->segv, 1);
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
    slot_enter(&att->mm, att->slot);
    take_back(att, start, end, true);
    slot_leave(&att->mm, att->slot);
}

void poison_forget(struct attachment *att, uint64_t start, uint64_t end)
{
    if (att->poisons_used)
        take_back(att, start, end, false);
}
