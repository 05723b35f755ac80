/*
 * reclaim.c - giving a page table back to the kernel while its 2 MiB span stays in the
 * window.
 *
 *   MADV_DONTNEED   frees the table where the kernel can (CONFIG_PT_RECLAIM, Linux
 *                   6.14), if nothing stays behind in it: no guard marker, and no
 *                   marker of a page that was write-protected by userfaultfd(2)
 *   move, discard   for read-only VMAs, whose pages are protected so: mremap(2) with
 *                   MREMAP_DONTUNMAP leaves the span mapped and watched but empty,
 *                   in one step and without markers. Taking the protection off
 *                   instead would let a stray write through in between
 *   map again       a kernel that keeps empty tables frees them only with the
 *                   mapping. Until the new mapping is registered, faults in it do not
 *                   come to us; if the whole span is one writable VMA of the region,
 *                   Linux shows exactly what we would have shown
 */
#define _GNU_SOURCE
#include "client/reclaim.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "client/poison.h"
#include "client/proc.h"
#include "client/view.h"
#include "core/slots.h"
#include "core/touched.h"
#include "core/uffd.h"
#include "core/vma.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* So many that other threads' tables do not matter. */
#define PROBE_SPANS 64u

static bool tables_stay; /* MADV_DONTNEED leaves empty tables */

/* VmPTE, in KiB; 0: unknown. */
static uint64_t page_tables(void)
{
    char text[4096], *at;

    proc_read("/proc/self/status", text, sizeof text);
    at = strstr(text, "VmPTE:");
    return at ? strtoull(at + strlen("VmPTE:"), NULL, 10) : 0;
}

static void probe(void)
{
    const uint64_t bytes = (PROBE_SPANS + 1) * PMD_SIZE;
    uint8_t *got = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (got == MAP_FAILED)
        return;
    uint8_t *start = (uint8_t *)(((uintptr_t)got + PMD_SIZE - 1) & ~(PMD_SIZE - 1));
    munlock(got, bytes);                  /* after mlockall(MCL_FUTURE) */
    madvise(got, bytes, MADV_NOHUGEPAGE); /* a huge zero page has no table */
    for (unsigned i = 0; i < PROBE_SPANS; i++)
        (void)*(volatile uint8_t *)(start + i * PMD_SIZE);
    uint64_t full = page_tables();
    for (unsigned i = 0; i < PROBE_SPANS; i++)
        madvise(start + i * PMD_SIZE, PMD_SIZE, MADV_DONTNEED);
    tables_stay = page_tables() + PROBE_SPANS * PAGE_SIZE / 1024 / 2 > full;
    munmap(got, bytes);
}

void reclaim_probe(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, probe);
}

/* The region's mappings in [start, end), summed up. */
struct rights {
    bool busy;      /* it is being changed */
    bool read_only; /* a VMA there is not writable */
    bool whole;     /* one VMA covers it all */
};

static struct rights rights_of(const struct mm *mm, uint64_t start, uint64_t end)
{
    struct rights rights = {.whole = false};

    for (uint64_t at = start; at < end;) {
        struct mm_vma vma = {.end = 0};
        int err = vma_find(mm, at, &vma);

        rights.busy |= err == -EUCLEAN || vma.flags & VMA_BUSY;
        if (err == -EUCLEAN || vma.end <= at || vma.start >= end)
            break; /* with -ENOENT, vma is the next one, if there is one */
        rights.read_only |= !(vma.flags & VMA_WRITE);
        rights.whole = !vma.object && vma.start <= start && vma.end >= end;
        at = vma.end;
    }
    return rights;
}

/* Whether the whole span is one watched mapping: a program may have put something of its
 * own there, which is not ours to discard. The kernel checks that before it finds that it
 * cannot read the page to copy. */
static bool watched(const struct attachment *att, uint8_t *page)
{
    struct uffdio_copy nothing = {
        .dst = (uintptr_t)page,
        .src = (uintptr_t)att->budget.scratch,
        .len = PMD_SIZE,
    };

    return !ioctl(att->uffd, UFFDIO_COPY, &nothing) || errno != ENOENT;
}

/* Whether the program has left the page's span whole: it changes adopted memory at will, and
 * `pieces` lists the parts that are left. */
static bool left_whole(const struct attachment *att, uint8_t *page)
{
    for (unsigned i = 0; i < att->pieces.count; i++)
        if (att->pieces.list[i].start <= (uintptr_t)page &&
            (uintptr_t)page + PMD_SIZE <= att->pieces.list[i].end)
            return true;
    return false;
}

static int discard(uint8_t *page, uint64_t size)
{
    return madvise(page, size, MADV_DONTNEED) ? -errno : 0; /* EINVAL: mlock(2) */
}

void reclaim_empty(uint8_t *scratch)
{
    /* Never a hole that a mapping of the program could fall into. */
    mmap(scratch, PMD_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
         0);
}

static int move_and_discard(const struct attachment *att, uint8_t *page)
{
    uint8_t *scratch = att->budget.scratch;
    int err;

    if (att->moved_uffd >= 0) /* if it watches the span, mremap(2) waits for us (arrange.c) */
        return -EOPNOTSUPP;
    err = discard(page, PAGE_SIZE); /* fails if locked: mremap(2) would take the lock off */

    if (err)
        return err;
    if (mremap(page, PMD_SIZE, PMD_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
               scratch) == MAP_FAILED)
        return -errno;
    err = discard(page, PMD_SIZE); /* only the table is left */
    reclaim_empty(scratch);
    return err;
}

static int map_again(const struct attachment *att, uint8_t *page)
{
    const uint64_t offset = attachment_offset(att, (uintptr_t)page);
    int err = discard(page, PMD_SIZE);

    if (err)
        return err;
    if (mmap(page, PMD_SIZE, view_prot_at(att, offset), view_flags(att) | MAP_FIXED, att->mem_fd,
             (off_t)offset) == MAP_FAILED)
        return -errno;
    madvise(page, PMD_SIZE, MADV_DONTDUMP);
    err = uffd_watch(att->uffd, (uintptr_t)page, PMD_SIZE);
    /* Pages that came in between came without us. */
    madvise(page, PMD_SIZE, MADV_DONTNEED);
    return err;
}

int reclaim_span(struct attachment *att, uint64_t start)
{
    uint8_t *page = attachment_at(att, start);
    int err;

    if (start + PMD_SIZE > attachment_limit(att))
        return -ERANGE;
    /* A guard page would stay behind as a marker, or it splits the mapping. */
    poison_rearm(att, start, start + PMD_SIZE);
    /* No change of rights can be under way while we are inside: the server would protect
     * pages that are going away. */
    slot_enter(&att->mm, att->slot);
    struct rights rights = rights_of(&att->mm, start, start + PMD_SIZE);
    if (rights.busy)
        err = -EBUSY;
    else if (!(is_adopted(att) ? left_whole(att, page) : watched(att, page)))
        err = -ENOENT;
    else if (tables_stay)
        err = rights.read_only || !rights.whole || is_adopted(att) ? -EOPNOTSUPP
                                                                   : map_again(att, page);
    else
        err = rights.read_only && !att->reader ? move_and_discard(att, page)
                                               : discard(page, PMD_SIZE);
    /* Otherwise a change of rights would give it a table again, for nothing. */
    if (!err)
        touched_unmark(&att->mm, att->slot, start);
    slot_leave(&att->mm, att->slot);
    return err;
}
