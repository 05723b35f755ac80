/*
 * steps.c - the core's operations in one piece of C, for tests that run them one
 * instruction at a time or in a tight loop. Built together with the core.
 *
 * A traced process stops itself before and after the operation, so that the
 * tracer steps through little else.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/audit.h"
#include "core/fault.h"
#include "core/slots.h"
#include "server/hostmm.h"

/* raise(3) would add two hundred instructions around each operation. */
static void stop(void) { syscall(SYS_kill, getpid(), SIGSTOP); }

/* A whole fault, as in resolve.c, without the memory. */
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

void stop_map(struct mm *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot)
{
    struct mm_vma vma = {.start = start, .end = end, .flags = prot};

    stop();
    if (!hostmm_map(mm, vma))
        hostmm_finish(mm, mem_fd);
    stop();
}

void stop_unmap(struct mm *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot)
{
    (void)prot;
    stop();
    if (!hostmm_unmap(mm, start, end))
        hostmm_finish(mm, mem_fd);
    stop();
}

void stop_protect(struct mm *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot)
{
    stop();
    if (!hostmm_protect(mm, start, end, prot))
        hostmm_finish(mm, mem_fd);
    stop();
}

void stop_guard(struct mm *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot)
{
    (void)prot;
    stop();
    if (!hostmm_drop(mm, start, end, 0, VMA_GUARD))
        hostmm_finish(mm, mem_fd);
    stop();
}

void stop_remove(struct mm *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot)
{
    (void)prot;
    stop();
    if (!hostmm_remove(mm, start, end))
        hostmm_finish(mm, mem_fd);
    stop();
}

void stop_seal(struct mm *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot)
{
    (void)mem_fd, (void)prot;
    stop();
    hostmm_flag(mm, start, end, 0, VMA_SEALED);
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

void stop_recover(struct mm *mm, int mem_fd)
{
    stop();
    hostmm_recover(mm, mem_fd);
    stop();
}

/* Faults on random pages of the `count` at `pages`; returns the verdicts seen, one
 * bit for each. */
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

/*
 * The store buffer, by experiment: in each round a client announces itself and
 * then looks at the epoch, while a server publishes and then looks for clients.
 * At least one must see the other. Each side is a process of its own.
 */
struct meeting {
    _Atomic uint64_t client_at, server_at; /* barriers passed */
    _Atomic uint64_t seen;                 /* by the client: the epoch it works on */
};

static void meet(_Atomic uint64_t *mine, const _Atomic uint64_t *other, uint64_t at)
{
    atomic_store(mine, at);
    for (unsigned spins = 0; atomic_load(other) < at; spins++)
        if (spins % 4096 == 4095)
            sched_yield();
}

/* Runs for ever. */
void meet_as_client(struct mm *mm, unsigned slot, struct meeting *meeting)
{
    for (uint64_t i = 0;; i++) {
        meet(&meeting->client_at, &meeting->server_at, 2 * i + 1);
        slot_enter(mm, slot);
        uint64_t seen = atomic_load_explicit(&mm->header->epoch, memory_order_acquire);
        atomic_store_explicit(&meeting->seen, seen, memory_order_relaxed);
        meet(&meeting->client_at, &meeting->server_at, 2 * i + 2);
        slot_leave(mm, slot);
    }
}

/* Plays rounds [first, end); returns in how many neither saw the other. */
uint64_t meet_as_server(struct mm *mm, struct meeting *meeting, uint64_t first, uint64_t end)
{
    uint64_t missed = 0;

    for (uint64_t i = first; i < end; i++) {
        uint64_t epoch = atomic_load(&mm->header->epoch) + 1;
        unsigned straggler;

        meet(&meeting->server_at, &meeting->client_at, 2 * i + 1);
        for (volatile unsigned late = i % 64; late; late--)
            ; /* so that the client may be a little earlier or later */
        atomic_store_explicit(&mm->header->epoch, epoch, memory_order_seq_cst);
        int waits = slot_grace(mm, &straggler);
        meet(&meeting->server_at, &meeting->client_at, 2 * i + 2);
        missed += !waits && atomic_load(&meeting->seen) < epoch;
    }
    return missed;
}
