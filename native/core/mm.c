/* mm.c - make, map and check a `.mm` object. */
#define _GNU_SOURCE
#include "core/mm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Linux 6.5 */
#endif

static uint64_t align(uint64_t value, uint64_t to) { return (value + to - 1) & ~(to - 1); }

static uint64_t spans(uint64_t bytes, uint64_t span) { return (bytes + span - 1) / span; }

/* Everything about the layout follows from size and quantum. */
static int geometry(uint64_t size, uint64_t quantum, struct mm_header *h)
{
    if (quantum != P4D_SIZE && quantum != PUD_SIZE && quantum != PMD_SIZE)
        return -EINVAL;
    if (!size || size % quantum || size > INT64_MAX)
        return -EINVAL;

    /* The host mm ends where a process's addresses end; only that part of a larger
     * region has tables. */
    uint64_t tabled = size < HOST_END - HOST_BASE ? size : HOST_END - HOST_BASE;

    h->magic = MM_MAGIC;
    h->signature = layout_signature();
    h->size = size;
    h->quantum = quantum;
    h->slots_max = MM_SLOTS;
    h->vmas_max = MM_VMAS;
    h->frames_max = spans(tabled, PMD_SIZE) + spans(tabled, PUD_SIZE) + spans(tabled, P4D_SIZE) +
                    1 + MM_FRAMES_SPARE;
    h->slots_at = PAGE_SIZE;
    h->vmas_at[0] = h->slots_at + (uint64_t)MM_SLOTS * sizeof(struct mm_slot);
    h->vmas_at[1] = align(h->vmas_at[0] + MM_VMAS_AREA * sizeof(struct mm_vma), PAGE_SIZE);
    h->touched_stride = align(spans(tabled, PMD_SIZE * 8), PAGE_SIZE);
    h->touched_at = align(h->vmas_at[1] + MM_VMAS_AREA * sizeof(struct mm_vma), PAGE_SIZE);
    h->records_at = h->touched_at + MM_SLOTS * h->touched_stride;
    h->words_at = align(h->records_at + TRACE_RECORDS * sizeof(struct mm_record), PAGE_SIZE);
    h->frames_at = align(h->words_at + h->frames_max * sizeof(uint64_t), PAGE_SIZE);
    h->file_size = h->frames_at + h->frames_max * PAGE_SIZE;
    return 0;
}

int64_t mm_file_size(uint64_t size, uint64_t quantum)
{
    struct mm_header header = {0};
    const int err = geometry(size, quantum, &header);

    return err ? err : (int64_t)header.file_size;
}

int mm_format(int fd, uint64_t region, uint64_t size, uint64_t quantum)
{
    struct mm_header header = {.region = region, .epoch = 2, .fault_around = 1};
    /* Frame 0 is the PGD; it exists from the start, also as bytes of the file. */
    const uint64_t word = frame_word(FRAME_TABLE, 3, 0, 0), pgd[512] = {0};
    int err = geometry(size, quantum, &header);

    if (err)
        return err;
    header.frames_hint = 1;
    header.frames_high = 1;
    if (ftruncate(fd, (off_t)header.file_size))
        return -errno;
    if (pwrite(fd, &word, sizeof word, (off_t)header.words_at) != sizeof word ||
        pwrite(fd, pgd, sizeof pgd, (off_t)header.frames_at) != sizeof pgd ||
        pwrite(fd, &header, sizeof header, 0) != sizeof header)
        return errno ? -errno : -EIO;
    return 0;
}

static bool same_geometry(const struct mm_header *a, const struct mm_header *b)
{
    return a->magic == b->magic && a->signature == b->signature && a->size == b->size &&
           a->quantum == b->quantum && a->file_size == b->file_size && a->slots_at == b->slots_at &&
           a->vmas_at[0] == b->vmas_at[0] && a->vmas_at[1] == b->vmas_at[1] &&
           a->touched_at == b->touched_at && a->touched_stride == b->touched_stride &&
           a->records_at == b->records_at && a->words_at == b->words_at &&
           a->frames_at == b->frames_at && a->slots_max == b->slots_max &&
           a->vmas_max == b->vmas_max && a->frames_max == b->frames_max;
}

int mm_open(struct mm *mm, int fd)
{
    struct mm_header found, own = {0};
    struct stat st;
    const int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fstat(fd, &st))
        return -errno;
    if (pread(fd, &found, sizeof found, 0) != sizeof found)
        return -EUCLEAN;
    if (geometry(found.size, found.quantum, &own) || !same_geometry(&found, &own) ||
        (uint64_t)st.st_size != own.file_size)
        return -EUCLEAN;

    /* After mlockall(MCL_FUTURE) a mapping is filled when it is made. This one must not be:
     * it has holes of a GiB. */
    uint8_t *map = mmap(NULL, own.file_size, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    munlock(map, own.file_size);
    if (mprotect(map, own.file_size,
                 (flags & O_ACCMODE) == O_RDONLY ? PROT_READ : PROT_READ | PROT_WRITE)) {
        const int err = errno;

        munmap(map, own.file_size);
        return -err;
    }
    /* Tables are not the program's memory: keep them out of its core dumps. */
    madvise(map, own.file_size, MADV_DONTDUMP);

    uint64_t end = own.size < HOST_END - HOST_BASE ? HOST_BASE + own.size : HOST_END;

    *mm = (struct mm){
        .header = (struct mm_header *)map,
        .slots = (struct mm_slot *)(map + own.slots_at),
        .vmas = {(struct mm_vma *)(map + own.vmas_at[0]), (struct mm_vma *)(map + own.vmas_at[1])},
        .touched = map + own.touched_at,
        .records = (struct mm_record *)(map + own.records_at),
        .words = (_Atomic uint64_t *)(map + own.words_at),
        .frames = map + own.frames_at,
        .size = own.size,
        .quantum = own.quantum,
        .host_end = end,
        .frames_max = own.frames_max,
        .frames_at = own.frames_at,
        .touched_at = own.touched_at,
        .touched_stride = own.touched_stride,
        .map_size = own.file_size,
        .fault_around = found.fault_around <= SPAN_PAGES ? found.fault_around : 1,
        .budget = found.budget,
        .writable = (flags & O_ACCMODE) != O_RDONLY,
        .fd = fd,
    };
    return 0;
}

void mm_close(struct mm *mm)
{
    if (mm->header)
        munmap(mm->header, mm->map_size);
    if (mm->fd >= 0)
        close(mm->fd);
    *mm = (struct mm){.fd = -1};
}

int64_t mm_pages(int fd, uint64_t start, uint64_t end)
{
    struct {
        uint64_t offset, bytes;
    } range = {start, end - start};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } found;

    if (start >= end) /* 0 bytes would be all of it */
        return 0;
    if (syscall(SYS_cachestat, fd, &range, &found, 0))
        return -errno;
    return (int64_t)(found.cached + found.evicted);
}

/* Where system calls are filtered by a list that is older than cachestat(2). */
static int64_t data_bytes(int fd, off_t at)
{
    int64_t bytes = 0;

    for (;;) {
        off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? bytes : -errno;
        off_t hole = lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            return -errno;
        bytes += hole - data;
        at = hole;
    }
}

int64_t mm_frame_bytes(const struct mm *mm)
{
    const int64_t pages = mm_pages(mm->fd, mm->frames_at, mm->map_size);

    return pages < 0 ? data_bytes(mm->fd, (off_t)mm->frames_at) : pages * (int64_t)PAGE_SIZE;
}

void mm_set_part(struct mm_slot *slot, uint64_t base, uint64_t offset, uint64_t bytes)
{
    const uint64_t spans = (bytes + PMD_SIZE - 1) / PMD_SIZE;

    slot->base = base;
    slot->part = (uint32_t)(offset / PMD_SIZE);
    slot->part_spans = spans < UINT32_MAX ? (uint32_t)spans : UINT32_MAX;
}

void mm_part(const struct mm *mm, unsigned slot, uint64_t *start, uint64_t *end)
{
    *start = mm->slots[slot].part * PMD_SIZE;
    *end = *start + mm->slots[slot].part_spans * PMD_SIZE;
    if (*end > mm->size)
        *end = mm->size;
    if (*start > *end)
        *start = *end;
}
