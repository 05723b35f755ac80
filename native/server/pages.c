/*
 * pages.c - see pages.h.
 *
 * What Linux does on advice it does to the pages that the caller has mapped. The server has none of
 * them mapped: it maps a part, does what was asked for, and unmaps it. MADV_COLD and MADV_PAGEOUT
 * pass over pages that others have mapped, too; so the clients have let go of them before.
 */
#define _GNU_SOURCE
#include "server/pages.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/layout.h"

#define PART_BYTES (64ull << 20)
#define PART_PAGES (PART_BYTES / PAGE_SIZE)

/* A mapping, aligned as the file is: huge pages of the file can be huge in it. */
struct part {
    uint8_t *reserved, *at;
    uint64_t size;
};

static int map_part(struct part *part, int fd, uint64_t offset, uint64_t size, unsigned how)
{
    const int prot = how & PAGES_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    const int none = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

    part->size = size + 2 * PMD_SIZE;
    part->reserved = mmap(NULL, part->size, PROT_NONE, none, -1, 0);
    if (part->reserved == MAP_FAILED)
        return -errno;
    const uint64_t first = ((uintptr_t)part->reserved + PMD_SIZE - 1) & ~(PMD_SIZE - 1);
    part->at = part->reserved + (first - (uintptr_t)part->reserved) + offset % PMD_SIZE;
    if (mmap(part->at, size, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, (off_t)offset) !=
        MAP_FAILED)
        return 0;
    const int err = -errno;
    munmap(part->reserved, part->size);
    return err;
}

static void unmap_part(const struct part *part) { munmap(part->reserved, part->size); }

static int call(const struct part *part, uint64_t start, uint64_t size, int advice)
{
    return madvise(part->at + start, size, advice) ? -errno : 0;
}

/* Advice that concerns mapped pages: maps those that are in memory, and no others. */
static int advise_resident(const struct part *part, uint64_t size, int advice)
{
    unsigned char vec[PART_PAGES];
    const uint64_t pages = size / PAGE_SIZE;
    int err = mincore(part->at, size, vec) ? -errno : 0;

    for (uint64_t i = 0, end; i < pages && !err; i = end) {
        for (end = i + 1; end < pages && (vec[end] & 1) == (vec[i] & 1); end++)
            ;
        if (!(vec[i] & 1))
            continue;
        err = call(part, i * PAGE_SIZE, (end - i) * PAGE_SIZE, MADV_POPULATE_READ);
        if (!err)
            err = call(part, i * PAGE_SIZE, (end - i) * PAGE_SIZE, advice);
    }
    return err;
}

static int advise_part(int fd, uint64_t offset, uint64_t size, int advice, unsigned how)
{
    struct part part;
    int err = map_part(&part, fd, offset, size, how);

    if (err)
        return err;
    if (how & PAGES_HUGE) /* EINVAL: this kernel has no huge pages */
        call(&part, 0, size, MADV_HUGEPAGE);
    if (advice == MADV_COLD || advice == MADV_PAGEOUT)
        err = advise_resident(&part, size, advice);
    else
        err = call(&part, 0, size, advice);
    unmap_part(&part);
    return err;
}

int pages_advise(int fd, uint64_t offset, uint64_t size, int advice, unsigned how)
{
    const uint64_t end = offset + size;
    int err = 0;

    for (uint64_t next; offset < end && !err; offset = next) {
        if (how & PAGES_SPARSE) {
            const off_t data = lseek(fd, (off_t)offset, SEEK_DATA);

            if (data < 0)
                return errno == ENXIO ? 0 : -errno;
            offset = (uint64_t)data & ~(PAGE_SIZE - 1);
            if (offset >= end)
                break;
        }
        next = (offset & ~(PART_BYTES - 1)) + PART_BYTES;
        next = next < end ? next : end;
        err = advise_part(fd, offset, next - offset, advice, how);
    }
    return err;
}

int pages_resident(int fd, uint64_t offset, uint64_t size, uint8_t *vec)
{
    struct part part;
    int err = map_part(&part, fd, offset, size, PAGES_READ);

    if (err)
        return err;
    err = mincore(part.at, size, vec) ? -errno : 0;
    unmap_part(&part);
    return err;
}

int pages_lock(int fd, uint64_t offset, uint64_t size, unsigned how, uint64_t *address)
{
    const int prot = how & PAGES_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    void *at = mmap(NULL, size, prot, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);

    if (at == MAP_FAILED)
        return -errno;
    if (mlock(at, size)) {
        const int err = -errno;

        munmap(at, size);
        return err;
    }
    *address = (uintptr_t)at;
    return 0;
}

void pages_unlock(uint64_t address, uint64_t size) { munmap((void *)address, size); }

int pages_bind(int fd, uint64_t offset, uint64_t size, int mode, const uint64_t *nodes,
               uint64_t maxnode, unsigned flags, unsigned how)
{
    const unsigned moves = MPOL_MF_MOVE | MPOL_MF_MOVE_ALL;
    struct part part;
    int err = map_part(&part, fd, offset, size, how);

    if (err)
        return err;
    if (flags & moves) /* those that are here and that are not where they should be */
        for (uint64_t at = 0, some; at < size; at += some) {
            struct part piece = {.at = part.at + at};

            some = size - at < PART_BYTES ? size - at : PART_BYTES;
            advise_resident(&piece, some, MADV_NORMAL);
        }
    /* A new mapping has the default, and Linux does nothing if a mapping has the policy already. */
    if (mode == MPOL_DEFAULT)
        syscall(SYS_mbind, part.at, size, MPOL_LOCAL, NULL, 0ul, 0u);
    if (syscall(SYS_mbind, part.at, size, mode, maxnode ? nodes : NULL, maxnode, flags))
        err = -errno;
    unmap_part(&part);
    return err;
}

int pages_policy(int fd, uint64_t offset, uint64_t *nodes, uint64_t maxnode)
{
    struct part part;
    int mode, err = map_part(&part, fd, offset, PAGE_SIZE, PAGES_READ);

    if (err)
        return err;
    if (syscall(SYS_get_mempolicy, &mode, nodes, maxnode, part.at, MPOL_F_ADDR))
        mode = -errno;
    unmap_part(&part);
    return mode;
}
