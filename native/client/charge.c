/*
 * charge.c - pages that the owner of a region pays for.
 *
 * Linux charges a page to whoever makes it. So we make none: the server has it made in the memory
 * cgroup of the region's owner, and what we do with the fault then is what we do with one whose
 * page is there already.
 *
 *   MISSING   CHARGE, with as many pages as the fault would have filled; no entry is filled yet.
 *             The thread that faulted sleeps on
 *   answer    it is woken, and faults again
 *   MINOR     entries are filled, at most of pages that are there
 *
 * A page that comes after its mapping has gone has no entry: the server takes it back.
 *
 * Runs on the service thread: no malloc, no stdio, no region memory.
 */
#define _GNU_SOURCE
#include "client/charge.h"

#include <errno.h>
#include <unistd.h>

#include "client/asked.h"
#include "core/control.h"

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static int ask(struct attachment *att, const struct fault *fault)
{
    const uint64_t span_end = (fault->offset & ~(PMD_SIZE - 1)) + PMD_SIZE;
    const uint64_t end = least(fault->offset + fault->fill * PAGE_SIZE,
                               least(fault->vma.end, span_end));
    struct msg msg = {.op = MSG_CHARGE, .arg = {fault->offset, end - fault->offset}};

    return asked_send(att, &msg, SEQ_CHARGE,
                      (struct asked){.offset = fault->offset, .bytes = end - fault->offset});
}

/* Lowers `fill` to the pages that are there. */
static void fill_present(const struct attachment *att, struct fault *fault)
{
    const off_t hole = lseek(att->mem_fd, (off_t)fault->offset, SEEK_HOLE);
    const uint64_t there = hole > (off_t)fault->offset
                               ? ((uint64_t)hole - fault->offset) / PAGE_SIZE
                               : 1;

    fault->fill = least(fault->fill, there);
}

int charge_pages(struct attachment *att, struct fault *fault, bool present, uint64_t ahead)
{
    if (present) {
        if (fault->fill > 1)
            fill_present(att, fault);
        return 0;
    }
    att->around.pages = ahead;
    return ask(att, fault);
}

int charge_told(struct attachment *att, const struct msg *msg, struct fault *fault)
{
    const struct asked *asked = att->charged ? asked_answered(att, msg->seq) : NULL;

    if (!asked)
        return -ESRCH;
    *fault = (struct fault){.offset = asked->offset,
                            .start = asked->offset,
                            .end = asked->offset + asked->bytes,
                            .step = "having it made at its owner's expense",
                            .error = msg->result};
    if (!msg->result && msg->arg[0]) {
        fault->step = "making it";
        fault->error = fault_make_range(att->mem_fd, asked->offset, asked->bytes);
    }
    return fault->error;
}
