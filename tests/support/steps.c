/*
 * steps.c - the core's operations in one piece of C, for tests that run them one
 * instruction at a time or in a tight loop. Built together with the core.
 *
 * A traced process stops itself before and after the operation, so that the
 * tracer steps through little else.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fault.h"
#include "hostmm.h"

/* raise(3) would add two hundred instructions around each operation. */
static void stop(void) { syscall(SYS_kill, getpid(), SIGSTOP); }

/* A whole fault, as resolve.c does it, without the memory. */
enum fault_verdict one_fault(struct mm *mm, unsigned slot, struct fault *fault)
{
    slot_enter(mm, slot);
    enum fault_verdict verdict = mm_fault(mm, slot, fault);
    slot_leave(mm, slot);
    return verdict;
}

void stop_fault(struct mm *mm, unsigned slot, struct fault *fault)
{
    stop();
    one_fault(mm, slot, fault);
    stop();
}

/* prot -1: unmap. */
void stop_change(struct mm *mm, int mem_fd, uint64_t start, uint64_t end, int prot)
{
    struct mm_vma vma = {.start = start, .end = end, .flags = (uint32_t)prot};

    stop();
    int err = prot < 0 ? hostmm_unmap(mm, start, end) : hostmm_map(mm, vma);
    if (!err)
        hostmm_finish(mm, mem_fd);
    stop();
}

void stop_abort(struct mm *mm, uint64_t start, uint64_t end)
{
    stop();
    if (!hostmm_unmap(mm, start, end))
        hostmm_abort(mm);
    stop();
}

void stop_reap(struct mm *mm, unsigned slot)
{
    stop();
    slot_reap(mm, slot);
    stop();
}

void stop_sweep(struct mm *mm)
{
    stop();
    mm_sweep(mm);
    stop();
}

void stop_finish(struct mm *mm, int mem_fd)
{
    stop();
    hostmm_finish(mm, mem_fd);
    stop();
}

/* Faults on random pages of the `count` at `pages`; returns the verdicts seen, a
 * bit each. */
unsigned hammer(struct mm *mm, unsigned slot, const uint64_t *pages, uint64_t count, uint64_t turns,
                uint64_t seed)
{
    unsigned seen = 0;

    for (uint64_t turn = 0; turn < turns; turn++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t offset = pages[(seed >> 33) % count];
        struct fault fault = {
            .offset = offset,
            .access = seed >> 32 & 1 ? ACCESS_WRITE : ACCESS_READ,
            .start = offset,
            .end = seed >> 31 & 1 ? (offset & -PMD_SIZE) + PMD_SIZE : offset + PAGE_SIZE,
            .fill = seed >> 30 & 1 ? 4 : 1,
        };
        seen |= 1u << one_fault(mm, slot, &fault);
    }
    return seen;
}
