/*
 * reader.c - an attachment that may only read.
 *
 *   .mem   open for reading only, and mapped privately: userfaultfd takes only what might be
 *          written. UFFDIO_CONTINUE maps the file's own page there, without the right to write
 *   .mm    open for reading only: the tables are here to look at; whoever fills an entry is the
 *          server (FAULT), in a slot that it has for us
 *
 * What other attachments write into their slot (counters, touched spans, guard pages) goes into one
 * of our own, and its figures to the server with the next question.
 *
 * The server answers between two changes of the region, and its messages come in order. So an
 * answer that is older than a change is used before the server asks us to take part in that
 * (REVOKE, ARRANGE). Where it does not ask, because to punch a hole is enough, we look at the
 * tables once more when the pages are mapped.
 *
 * As with objects nobody waits for the server here: the thread that faulted sleeps on.
 *
 * Runs on the service thread: no malloc, no stdio, no region memory.
 */
#define _GNU_SOURCE
#include "client/reader.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "client/around.h"
#include "client/asked.h"
#include "client/counts.h"
#include "client/own.h"
#include "core/control.h"
#include "core/vma.h"

static uint64_t own_bytes(const struct attachment *att)
{
    return PAGE_SIZE + att->mm.touched_stride;
}

int reader_start(struct attachment *att)
{
    const uint64_t bytes = own_bytes(att);

    if (att->own) {
        memset(att->own, 0, sizeof(struct mm_slot));
        madvise(att->own + PAGE_SIZE, bytes - PAGE_SIZE, MADV_DONTNEED);
    } else {
        uint8_t *got = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (got == MAP_FAILED)
            return -errno;
        madvise(got, bytes, MADV_DONTDUMP);
        att->own = got;
    }
    asked_forget(att);
    att->around = (struct around){.far = true};
    att->slot = 0;
    att->mm.slots = (struct mm_slot *)att->own;
    att->mm.touched = att->own + PAGE_SIZE;
    return 0;
}

void reader_end(struct attachment *att)
{
    if (att->own)
        munmap(att->own, own_bytes(att));
    att->own = NULL;
}

static struct figures figures(const struct attachment *att)
{
    struct mm_slot *slot = &att->mm.slots[att->slot];

    return (struct figures){
        .faults = atomic_load(&slot->counters.faults),
        .links = atomic_load(&slot->counters.links),
        .materialised = atomic_load(&slot->counters.materialised),
        .segv = atomic_load(&slot->counters.segv),
        .prefaulted = atomic_load(&slot->counters.prefaulted),
        .evicted = atomic_load(&slot->counters.evicted),
        .refaulted = atomic_load(&slot->counters.refaulted),
        .budget = atomic_load(&slot->budget),
        .budget_asked = atomic_load(&slot->budget_asked),
        .budget_grown = atomic_load(&slot->budget_grown),
        .poisoned = atomic_load(&slot->poisoned),
        .unshared = atomic_load(&slot->unshared),
    };
}

void reader_figures(const struct attachment *att, struct msg *msg)
{
    const struct figures own = figures(att);

    memcpy(msg->text, &own, sizeof own);
}

void reader_introduce(const struct attachment *att, struct msg *msg)
{
    msg->arg[0] = (uintptr_t)att->base;
    msg->arg[1] = (uint64_t)att->asked;
    msg->arg[2] = att->way;
    msg->arg[3] = att->offset;
    msg->arg[4] = att->length;
    reader_figures(att, msg);
}

void reader_report(const struct attachment *att)
{
    struct msg msg = {.op = MSG_FIGURES};

    if (!att->live || att->ctl < 0)
        return;
    reader_figures(att, &msg);
    control_send(att->ctl, &msg, NULL, 0, CONTROL_AT_ONCE);
}

int reader_ask(struct attachment *att, const struct fault *fault, bool present)
{
    const uint64_t run = fault->offset + att->around.pages * PAGE_SIZE;
    const struct fault_ask ask = {
        .offset = fault->offset,
        .start = fault->start,
        .end = fault->end,
        .limit = fault->limit,
        .ahead = !fault->vma.object && att->around.pages > 1 ? run : 0,
        .object = fault->vma.object,
        .skip = fault->skip,
        .fill = (uint16_t)fault->fill,
        .present = present,
        .links = !counts_linked(att, fault->offset),
        .figures = figures(att),
    };
    struct msg msg = {.op = MSG_FAULT};

    memcpy(msg.text, &ask, sizeof ask);
    return asked_send(
        att, &msg, SEQ_FAULT,
        (struct asked){.offset = fault->offset, .limit = fault->limit, .ahead = ask.ahead});
}

/* Whether the range of an answer is one that we may map. */
static bool fits(const struct attachment *att, const struct fault *fault)
{
    const uint64_t span = fault->offset & ~(PMD_SIZE - 1);

    if ((fault->start | fault->end) % PAGE_SIZE || fault->start > fault->offset ||
        fault->end <= fault->offset || fault->start < att->offset ||
        fault->end > attachment_limit(att))
        return false;
    return fault->vma.object ? fault->start >= fault->vma.start && fault->end <= fault->vma.end
                             : fault->start >= span && fault->end <= span + PMD_SIZE;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

bool reader_told(struct attachment *att, const struct msg *msg, struct answer *answer)
{
    struct fault *fault = &answer->fault;
    struct fault_told told;
    const struct asked *asked = att->reader ? asked_answered(att, msg->seq) : NULL;

    if (!asked)
        return false;
    memcpy(&told, msg->text, sizeof told);
    *answer = (struct answer){
        .fault = {.offset = asked->offset,
                  .start = told.start,
                  .end = told.end,
                  .limit = asked->limit,
                  .filled = told.filled,
                  .beside = told.beside,
                  .vma = told.vma},
        .verdict = msg->result || told.verdict > FAULT_BROKEN ? FAULT_BROKEN : told.verdict,
        .ahead = least(asked->ahead, least(told.vma.end, attachment_limit(att))),
        .epoch = told.epoch,
    };
    memcpy(fault->present, told.present, sizeof fault->present);
    if (answer->verdict == FAULT_MAP && !fits(att, fault))
        answer->verdict = FAULT_BROKEN;
    if (answer->verdict != FAULT_MAP) { /* for whoever looks at it from here on: one page */
        fault->start = fault->offset;
        fault->end = fault->offset + PAGE_SIZE;
    }
    return true;
}

bool reader_confirm(const struct attachment *att, const struct answer *answer)
{
    const struct fault *fault = &answer->fault;
    const uint64_t end = answer->ahead > fault->end ? answer->ahead : fault->end;
    struct mm_vma now;

    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&att->mm.header->epoch) == answer->epoch)
        return true;
    if (!vma_find(&att->mm, fault->offset, &now) && now.serial == fault->vma.serial &&
        now.start <= fault->start && now.end >= end && !(now.flags & VMA_BUSY))
        return true;
    own_drop(att, fault->start, end);
    return false;
}
