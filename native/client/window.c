/* window.c - finding an aligned hole in the address space; see window.h. */
#define _GNU_SOURCE
#include "client/window.h"

#include <errno.h>
#include <sys/mman.h>

#include "core/layout.h"

#define RESERVE (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
/* Candidates to try one by one: every place a 512 GiB or 1 GiB window can have. */
#define TRIES_MAX 131072u

static uint64_t align_up(uint64_t value, uint64_t to) { return (value + to - 1) & ~(to - 1); }

static int reserve_at(uint64_t addr, uint64_t size, uint8_t **base)
{
    void *got = mmap((void *)addr, size, PROT_NONE, RESERVE | MAP_FIXED_NOREPLACE, -1, 0);

    if (got == MAP_FAILED)
        return -errno;
    *base = got;
    return 0;
}

/* Reserves more than is needed and gives back both ends. */
static int reserve_anywhere(uint64_t size, uint64_t quantum, uint8_t **base)
{
    uint64_t more = quantum - PAGE_SIZE;
    uint8_t *got = mmap(NULL, size + more, PROT_NONE, RESERVE, -1, 0);

    if (got == MAP_FAILED)
        return -errno;
    uint64_t before = align_up((uint64_t)got, quantum) - (uint64_t)got;
    if (before)
        munmap(got, before);
    if (more - before)
        munmap(got + before + size, more - before);
    *base = got + before;
    return 0;
}

/* The last windows fit exactly: try the aligned places from the top. */
static int reserve_tightly(uint64_t size, uint64_t quantum, uint8_t **base)
{
    uint64_t addr = (HOST_END - size) & ~(quantum - 1);

    if (HOST_END / quantum > TRIES_MAX)
        return -ENOMEM;
    for (; addr >= quantum; addr -= quantum)
        if (!reserve_at(addr, size, base))
            return 0;
    return -ENOMEM;
}

int window_reserve(void *addr, uint64_t size, uint64_t quantum, int flags, uint8_t **base)
{
    uint64_t wish = (uint64_t)addr;

    if (size > HOST_END)
        return -ENOMEM;
    if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
        if (wish % quantum)
            return -EINVAL;
        if (wish > HOST_END - size)
            return -ENOMEM;
        *base = addr;
        return flags & MAP_FIXED_NOREPLACE ? reserve_at(wish, size, base) : 0;
    }
    /* As get_unmapped_area() of the series: page bits off, then up. */
    wish = align_up(wish & ~(PAGE_SIZE - 1), quantum);
    if (wish && wish <= HOST_END - size && !reserve_at(wish, size, base))
        return 0;
    int err = reserve_anywhere(size, quantum, base);
    return err == -ENOMEM ? reserve_tightly(size, quantum, base) : err;
}
