/*
 * region.c - see region.h.
 *
 * A region is made once for each shape and stays open. What its files contain is kept: before each
 * input only that is put back. A page that is mapped already costs no fault.
 */
#define _GNU_SOURCE
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/fault.h"
#include "core/frames.h"
#include "core/slots.h"
#include "core/touched.h"
#include "server/hostmm.h"

#define RECORDS_MAX 128
#define ZEROED_MAX 192u
#define CLIENTS 2u
#define RUN_PAGES 24u

/* One page of the `.mm` object. */
struct record {
    off_t at;
    uint8_t bytes[PAGE_SIZE];
};

struct kept {
    struct region region; /* as each input finds it */
    unsigned used;
    struct record records[RECORDS_MAX]; /* in order */
};

static const struct {
    uint64_t size, quantum;
} shapes[REGION_SHAPES] = {
    {4 * PMD_SIZE, PMD_SIZE},
    {3 * PUD_SIZE, PUD_SIZE},
    {2 * P4D_SIZE, P4D_SIZE},
};

static void must(bool done, const char *what)
{
    if (done)
        return;
    perror(what);
    abort();
}

static int memfd(const char *name, uint64_t size)
{
    int fd = memfd_create(name, MFD_CLOEXEC);

    must(fd >= 0 && !ftruncate(fd, (off_t)size), name);
    return fd;
}

static void map(struct region *region, uint64_t start, uint64_t end, uint32_t flags,
                uint32_t object)
{
    const struct mm_vma vma = {.start = start, .end = end, .flags = flags, .object = object};

    must(!hostmm_map(&region->mm, vma) && !hostmm_finish(&region->mm, region->mem_fd), "map");
}

static void touch(struct region *region, unsigned slot, uint64_t offset)
{
    struct fault fault = {
        .offset = offset,
        .access = ACCESS_WRITE,
        .start = offset,
        .end = offset + PAGE_SIZE,
        .fill = 1,
        .limit = UINT64_MAX,
    };

    slot_enter(&region->mm, slot);
    touched_mark(&region->mm, slot, offset, PAGE_SIZE);
    must(mm_fault(&region->mm, slot, &fault) == FAULT_MAP, "touch");
    slot_leave(&region->mm, slot);
}

/* Mappings of every kind at the edges of tables, and an entry in each. */
static void furnish(struct region *region)
{
    const uint64_t end = region->mm.size;
    const uint64_t host_end = region->mm.host_end - HOST_BASE;

    map(region, 0, end, VMA_READ | VMA_WRITE, 0);
    map(region, PAGE_SIZE, 2 * PAGE_SIZE, VMA_READ | VMA_WRITE | VMA_EXEC, 0);
    map(region, PMD_SIZE, PMD_SIZE + 8 * PAGE_SIZE, VMA_READ | VMA_WRITE, 1);
    map(region, 2 * PMD_SIZE, 3 * PMD_SIZE, VMA_READ | VMA_WRITE | VMA_HUGE, 2);
    for (unsigned i = 0; i < CLIENTS; i++) {
        int slot = slot_claim(&region->mm, (uint64_t)i + 1, 1);

        must(slot == (int)i, "claim");
        touch(region, i, i * 4 * PAGE_SIZE);
        touch(region, i, PAGE_SIZE);
        touch(region, i, PMD_SIZE - PAGE_SIZE);
        touch(region, i, PMD_SIZE);
        touch(region, i, 2 * PMD_SIZE);
        touch(region, i, host_end - PAGE_SIZE);
    }
    /* So many in a row that a client stops watching them (handover.c). */
    for (uint64_t page = 0; page < RUN_PAGES; page++)
        touch(region, CLIENTS - 1, 3 * PMD_SIZE + page * PAGE_SIZE);
    region->slot = 0;
}

static void keep(struct kept *kept, const struct mm *mm)
{
    off_t end = 0, at;

    while ((at = lseek(mm->fd, end, SEEK_DATA)) >= 0) {
        end = lseek(mm->fd, at, SEEK_HOLE);
        for (; at < end; at += (off_t)PAGE_SIZE) {
            struct record *record = &kept->records[kept->used++];

            must(kept->used < RECORDS_MAX, "more pages than are kept");
            record->at = at;
            must(pread(mm->fd, record->bytes, PAGE_SIZE, at) == (ssize_t)PAGE_SIZE, "keep");
        }
    }
}

static void make_first(struct kept *kept, enum region_shape shape)
{
    struct region *region = &kept->region;
    const int fd = memfd("fuzz-mm", 0);

    region->mem_fd = memfd("fuzz-mem", shapes[shape].size);
    must(!mm_format(fd, 1, shapes[shape].size, shapes[shape].quantum), "mm_format");
    must(!mm_open(&region->mm, fd), "mm_open");
    furnish(region);
    keep(kept, &region->mm);
}

static void empty(int fd)
{
    const off_t size = lseek(fd, 0, SEEK_END);

    if (lseek(fd, 0, SEEK_DATA) >= 0)
        must(!ftruncate(fd, 0) && !ftruncate(fd, size), "ftruncate");
}

/* Pages that the region did not have. Tables are counted by the pages they take, so theirs go. Of
 * the others only the contents are seen, and to keep them is cheaper, as long as they are few. */
static void take_away(const struct mm *mm, off_t start, off_t end, unsigned *extra)
{
    if (start >= end)
        return;
    *extra += (unsigned)((end - start) / (off_t)PAGE_SIZE);
    if (end <= (off_t)mm->frames_at && *extra <= ZEROED_MAX)
        memset((uint8_t *)mm->header + start, 0, (size_t)(end - start));
    else
        must(!fallocate(mm->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, end - start),
             "fallocate");
}

static void put_back(const struct kept *kept)
{
    const struct mm *mm = &kept->region.mm;
    unsigned next = 0, extra = 0;
    off_t end = 0, at;

    while ((at = lseek(mm->fd, end, SEEK_DATA)) >= 0) {
        end = lseek(mm->fd, at, SEEK_HOLE);
        for (; next < kept->used && kept->records[next].at < end; next++) {
            take_away(mm, at, kept->records[next].at, &extra);
            if (at <= kept->records[next].at)
                at = kept->records[next].at + (off_t)PAGE_SIZE;
        }
        take_away(mm, at, end, &extra);
    }
    for (unsigned i = 0; i < kept->used; i++)
        memcpy((uint8_t *)mm->header + kept->records[i].at, kept->records[i].bytes, PAGE_SIZE);
}

void region_make(struct region *region, enum region_shape shape)
{
    static struct kept kept[REGION_SHAPES];
    struct kept *from = &kept[shape];

    if (!from->used)
        make_first(from, shape);
    put_back(from);
    empty(from->region.mem_fd);
    *region = from->region;
}

/* A frame, mostly one that is in use. */
static uint64_t frame(const struct region *region, struct input *input)
{
    const uint8_t number = input_u8(input);

    return number < 240 ? number % 24 : input_below(input, region->mm.frames_max);
}

/* The place to scribble on: everything that another process may have written. */
static uint64_t *place(struct region *region, struct input *input)
{
    struct mm *mm = &region->mm;
    const uint8_t kind = input_u8(input), index = input_u8(input);

    switch (kind % 6) {
    case 0:
        return (uint64_t *)mm->header + index % (sizeof(struct mm_header) / 8);
    case 1: /* a snapshot area */
        return (uint64_t *)mm->vmas[kind >> 7] + index % (8 * sizeof(struct mm_vma) / 8);
    case 2:
        return (uint64_t *)mm->words + frame(region, input);
    case 3:
        return (uint64_t *)frame_entries(mm, frame(region, input)) +
               (index < 128 ? index % 4 : input_below(input, 512));
    case 4:
        return (uint64_t *)mm->slots + index % (CLIENTS * sizeof(struct mm_slot) / 8 * 2);
    default:
        return (uint64_t *)(mm->touched + (index & 1) * mm->touched_stride) + (index >> 1) % 4;
    }
}

/* The value to write there: the worst ones, other values of a region, and any number. */
static uint64_t value(struct region *region, struct input *input, uint64_t old)
{
    switch (input_u8(input) % 10) {
    case 0:
        return old ^ 1ull << input_below(input, 64);
    case 1:
        return old + input_u8(input) - 128;
    case 2:
        return input_below(input, 1 << 20) * PAGE_SIZE;
    case 3:
        return region_offset(region, input);
    case 4:
        return frame_entry(frame(region, input));
    case 5:
        return frame_word(input_u8(input) & 3, input_u8(input) & 3, input_u8(input) % 4,
                          HOST_BASE + input_below(input, region->mm.size));
    case 6: { /* small, in either half */
        const uint64_t low = input_u8(input);

        return (uint64_t)input_u8(input) << 32 | low;
    }
    case 7:
        return *place(region, input);
    case 8:
        return ~0ull << input_below(input, 64);
    default:
        return input_u64(input);
    }
}

void region_scribble(struct region *region, struct input *input)
{
    uint64_t *at = place(region, input);

    *at = value(region, input, *at);
}

uint64_t region_offset(const struct region *region, struct input *input)
{
    const uint64_t known[] = {
        0,
        PAGE_SIZE,
        4 * PAGE_SIZE,
        PMD_SIZE - PAGE_SIZE,
        PMD_SIZE,
        PMD_SIZE + 4 * PAGE_SIZE,
        2 * PMD_SIZE,
        2 * PMD_SIZE + 7 * PAGE_SIZE,
        3 * PMD_SIZE,
        3 * PMD_SIZE + RUN_PAGES / 2 * PAGE_SIZE,
        region->mm.quantum,
        region->mm.size / 2,
        region->mm.host_end - HOST_BASE,
        region->mm.host_end - HOST_BASE - PAGE_SIZE,
        region->mm.size,
        region->mm.size - PAGE_SIZE,
    };
    const uint8_t kind = input_u8(input);
    const unsigned count = sizeof known / sizeof *known;

    return kind < 240 ? known[kind % count] : input_below(input, region->mm.size) & -PAGE_SIZE;
}
