/*
 * arrange.c - the window as it must be where no page is reachable yet: a mapping of .mem
 * under userfaultfd, with the attachment's protection, and with execution where the
 * region's mappings permit it. The kernel refuses a fetch from a page that is not
 * executable before we can be asked, so the right to execute is set ahead.
 *
 *   window   wwwwBBBBwwwwBBww   ->   wwwwwwwwwwwwwwww     w: .mem   B: an object
 *
 * Threads of the program use the memory meanwhile. Between an mmap(2) of .mem over a
 * block and its registration they would see a page that the region does not have, and
 * store to it. So the new mapping is made and registered elsewhere, and moved into its
 * place in one step. mremap(2) keeps the registration only with a userfaultfd that wants
 * to be told of it (UFFD_FEATURE_EVENT_REMAP), and does not return before that event was
 * read. The service thread reads it, so another thread has to move: one that does that
 * system call and nothing else. Moved memory has a userfaultfd of its own: if the
 * window's had that feature, no part of it could be moved without such a thread
 * (reclaim.c).
 *
 * Runs on the service thread: no malloc, no stdio, no region memory. (In an attachment
 * that is being made there may be no such thread yet, but then no page is touched, and
 * nothing is moved.)
 */
#define _GNU_SOURCE
#include "client/arrange.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/birth.h"
#include "client/own.h"
#include "client/poison.h"
#include "client/view.h"
#include "client/watch.h"
#include "core/slots.h"
#include "core/task.h"
#include "core/touched.h"
#include "core/uffd.h"
#include "core/vma.h"

/* The address space that a move needs in addition. */
#define MOVE_BYTES PUD_SIZE
#define MOVER_STACK_BYTES 16384
#define EVENTS 16
/* After a change of what may be executed, the server asks again anyway. */
#define ARRANGED_AGAIN_MAX 8u

struct move {
    uint8_t *from, *to;
    uint64_t bytes;
    bool done;
};

/* It shares our thread-local storage: nobody may read errno while it runs. */
static int mover(void *arg)
{
    struct move *move = arg;

    move->done = syscall(SYS_mremap, move->from, move->bytes, move->bytes,
                         MREMAP_MAYMOVE | MREMAP_FIXED, move->to) == (long)(uintptr_t)move->to;
    return 0;
}

/* Reads and drops the events that have come. A fault among them comes again. */
static void read_events(const struct attachment *att)
{
    struct uffd_msg msgs[EVENTS];
    ssize_t got = read(att->moved_uffd, msgs, sizeof msgs);

    for (ssize_t i = 0; i < got / (ssize_t)sizeof *msgs; i++)
        if (msgs[i].event == UFFD_EVENT_PAGEFAULT) {
            const uint64_t offset = attachment_offset(att, msgs[i].arg.pagefault.address);

            view_wake(att, offset & ~(PAGE_SIZE - 1), (offset & ~(PAGE_SIZE - 1)) + PAGE_SIZE);
        }
}

static int move_window(const struct attachment *att, struct move *move)
{
    static _Alignas(16) char stack[MOVER_STACK_BYTES]; /* there is one service thread */
    uint8_t *end = has_shadow(att) ? birth_second_stack(att) : (uint8_t *)stack + sizeof stack;
    _Atomic int running = 0;
    struct pollfd ready = {att->moved_uffd, POLLIN, 0};

    const int err = task_new(mover, move, end, ARRANGE_CLONE, NULL, &running);

    if (err < 0)
        return err;
    /* The kernel clears it when the thread is gone, which does not report a failure. */
    while (running) {
        poll(&ready, 1, 1);
        read_events(att);
    }
    return move->done ? 0 : -ENOMEM;
}

static int watch_moved(struct attachment *att)
{
    int err;

    if (att->moved_uffd >= 0)
        return 0;
    err = view_uffd(att, UFFD_FEATURE_EVENT_REMAP);
    if (err < 0)
        return err;
    att->moved_uffd = err;
    err = has_shadow(att) ? 0 : watch_add_moved(att); /* a shadow looks at it anyway */
    if (err) {                                        /* nobody would read its events */
        close(att->moved_uffd);
        att->moved_uffd = -1;
    }
    return err;
}

/* Puts .mem, under userfaultfd, over whatever is at [start, end). */
static int put_back(struct attachment *att, uint64_t start, uint64_t end, int prot)
{
    struct move move = {.to = attachment_at(att, start), .bytes = end - start};
    int err = watch_moved(att);

    if (err)
        return err;
    /* As in view_map(), for the same reasons. */
    move.from = mmap(NULL, move.bytes, PROT_NONE, view_flags(att), att->mem_fd, (off_t)start);
    if (move.from == MAP_FAILED)
        return -errno;
    munlock(move.from, move.bytes);
    if (mprotect(move.from, move.bytes, prot))
        err = -errno;
    madvise(move.from, move.bytes, MADV_DONTDUMP);
    if (att->advice & ADVICE_DONTFORK)
        madvise(move.from, move.bytes, MADV_DONTFORK);
    if (!err)
        err = uffd_watch(att->moved_uffd, (uintptr_t)move.from, move.bytes);
    if (!err)
        err = move_window(att, &move);
    if (err)
        munmap(move.from, move.bytes);
    else
        poison_forget(att, start, end);
    view_wake(att, start, end);
    return err;
}

/* A part of the window that gets one protection. */
struct part {
    struct attachment *att;
    int prot;
};

static int set_part(void *arg, uint64_t start, uint64_t end)
{
    const struct part *part = arg;

    const int prot = unshared_prot(&part->att->unshared, start, part->prot);

    return mprotect(attachment_at(part->att, start), end - start, prot) ? -errno : 0;
}

static int set_prot(struct attachment *att, uint64_t start, uint64_t end, int prot)
{
    struct part part = {att, prot};

    return own_each(att, own_maps(att), OWN_MEMORY, start, end, set_part, &part);
}

static int put_part_back(void *arg, uint64_t start, uint64_t end)
{
    const struct part *part = arg;

    return put_back(part->att, start, end, unshared_prot(&part->att->unshared, start, part->prot));
}

/* Arranges a range of one protection. Blocks can only be in spans that we touched. */
static int arrange_range(struct attachment *att, uint64_t start, uint64_t end, int prot,
                         bool blocks)
{
    struct part part = {att, prot};
    uint64_t run = start, stop;
    int err = 0;

    for (; !err && blocks && touched_run(&att->mm, att->slot, &run, end, &stop);
         start = run = stop) {
        if (stop - run > MOVE_BYTES)
            stop = run + MOVE_BYTES;
        err = set_prot(att, start, run, prot);
        if (!err)
            err = own_each(att, own_maps(att), OWN_ALL, run, stop, put_part_back, &part);
    }
    return err ? err : set_prot(att, start, end, prot);
}

/* The range of one protection that one call arranges. */
struct run {
    uint64_t start, end;
    int prot;
    bool blocks;
};

static int extend(struct attachment *att, struct run *run, uint64_t end, int prot, bool blocks)
{
    int err = 0;

    if (end <= run->end)
        return 0;
    if (run->prot != prot || run->blocks != blocks) {
        err = arrange_range(att, run->start, run->end, run->prot, run->blocks);
        *run = (struct run){run->end, run->end, prot, blocks};
    }
    run->end = end;
    return err;
}

static int arrange_all(struct attachment *att, uint64_t start, uint64_t end, bool objects)
{
    uint64_t used;
    const struct mm_vma *set = vma_snapshot(&att->mm, atomic_load(&att->mm.header->epoch), &used);
    struct run run = {start, start, att->prot, objects};
    int err = set ? 0 : -EUCLEAN;

    for (uint64_t i = 0; !err && i < used; i++) {
        const struct mm_vma vma = set[i];

        if (vma.end <= start || vma.start >= end)
            continue;
        if ((vma.start | vma.end) % PAGE_SIZE)
            return -EUCLEAN;
        err = extend(att, &run, vma.start, att->prot, objects);
        if (!err)
            err = extend(att, &run, vma.end < end ? vma.end : end, view_prot(att, vma.flags),
                         objects || vma.object);
    }
    if (!err)
        err = extend(att, &run, end, att->prot, objects);
    return err ? err : arrange_range(att, run.start, run.end, run.prot, run.blocks);
}

int arrange(struct attachment *att, uint64_t start, uint64_t end, bool objects)
{
    unsigned again = ARRANGED_AGAIN_MAX;
    uint64_t epoch;
    int err;

    if (start > end || end > att->mm.size || (start | end) % PAGE_SIZE)
        return -EINVAL;
    if (is_adopted(att)) /* the program protects that memory at will */
        return 0;
    if (!attachment_clip(att, &start, &end))
        return 0;
    do { /* nobody waits for a reader before the next snapshot but one is written here */
        epoch = atomic_load(&att->mm.header->epoch);
        slot_enter(&att->mm, att->slot);
        err = arrange_all(att, start, end, objects);
        slot_leave(&att->mm, att->slot);
    } while (att->reader && epoch != atomic_load(&att->mm.header->epoch) && again--);
    return err;
}
