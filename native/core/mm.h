/*
 * mm.h - a mapped host mm: the checked view of a `.mm` object. Internal; functions return
 * 0 or -errno unless the comment says otherwise.
 *
 * Addresses in the tables are host addresses: HOST_BASE + region offset.
 */
#ifndef MSHARE_MM_H
#define MSHARE_MM_H

#include <stdbool.h>
#include <sys/types.h>

#include "core/layout.h"

/*
 * The geometry is recomputed from size and quantum when the object is opened, and
 * kept here, out of everybody's reach: nothing below trusts the one in the header.
 */
struct mm {
    struct mm_header *header;
    struct mm_slot *slots;
    struct mm_vma *vmas[2];
    uint8_t *touched;
    struct mm_record *records;
    _Atomic uint64_t *words;
    uint8_t *frames;

    uint64_t size;     /* region, bytes */
    uint64_t quantum;  /* bytes */
    uint64_t host_end; /* end of the region in host addresses, <= HOST_END */
    uint64_t frames_max;
    uint64_t frames_at;
    uint64_t touched_at;
    uint64_t touched_stride; /* bytes per slot */
    uint64_t map_size;
    uint64_t fault_around; /* pages, up to 512 */
    bool writable;         /* as mapped here */
    uint64_t budget;       /* bytes of page tables a client may keep, 0: any number */
    int fd;
};

/* Bytes of the `.mm` object of such a region. EINVAL: as for mm_format(). */
int64_t mm_file_size(uint64_t size, uint64_t quantum);
/* Writes the header of a new region into the empty file `fd`. EINVAL: size is
 * not a positive multiple of quantum, or quantum is not one of ours. */
int mm_format(int fd, uint64_t region, uint64_t size, uint64_t quantum);
/* Maps and checks a host mm. EUCLEAN: it is none, or of another build. Keeps `fd`. If that
 * is open for reading only so is the mapping: writing there is SIGSEGV. */
int mm_open(struct mm *mm, int fd);
void mm_close(struct mm *mm);
/* How many pages a file in memory has in [start, end), those that are swapped out among them; or
 * -errno. Does not wait for whoever keeps the file locked. */
int64_t mm_pages(int fd, uint64_t start, uint64_t end);
/* Says in a slot where its window is, and which part of the region: whole spans of 2 MiB.
 * Precondition: the slot is ours. */
void mm_set_part(struct mm_slot *slot, uint64_t base, uint64_t offset, uint64_t bytes);
/* Which part that is, by what the slot says: region offsets, inside the region. */
void mm_part(const struct mm *mm, unsigned slot, uint64_t *start, uint64_t *end);
/* Bytes that the frames area really takes in the file, or -errno. */
int64_t mm_frame_bytes(const struct mm *mm);

/* Adds to a counter. Precondition: its one writer, so that a load and a store are enough. */
static inline void count_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

/* Raises the high-water mark to `value`. */
static inline void mm_raise(_Atomic uint64_t *high, uint64_t value)
{
    uint64_t seen = atomic_load(high);

    while (seen < value && !atomic_compare_exchange_weak(high, &seen, value))
        ;
}

#endif
