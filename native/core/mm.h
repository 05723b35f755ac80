/*
 * mm.h - a mapped host mm: the checked view of a `.mm` object, and what can be
 * done to it. Internal; functions return 0 or -errno unless said otherwise.
 *
 * Addresses in the tables are host addresses: HOST_BASE + region offset.
 */
#ifndef MSHARE_MM_H
#define MSHARE_MM_H

#include <stdbool.h>
#include <sys/types.h>

#include "core/layout.h"

/*
 * The geometry is recomputed from size and quantum when the object is opened
 * and kept here, out of everybody's reach: nothing below trusts the header's.
 */
struct mm {
    struct mm_header *header;
    struct mm_slot *slots;
    struct mm_vma *vmas[2];
    uint8_t *touched;
    _Atomic uint64_t *words;
    uint8_t *frames;

    uint64_t size;     /* region, bytes */
    uint64_t quantum;  /* bytes */
    uint64_t host_end; /* end of the region in host addresses, <= HOST_END */
    uint64_t frames_max;
    uint64_t frames_at;
    uint64_t touched_at;
    uint64_t touched_stride; /* bytes a slot */
    uint64_t map_size;
    uint64_t fault_around; /* pages, 1 to 512 */
    uint64_t budget;       /* bytes of page tables a client is to keep, 0: any */
    int fd;
};

/* mm.c */

/* Writes the header of a new region into the empty file `fd`. EINVAL: size is
 * not a positive multiple of quantum, or quantum not one of ours. */
int mm_format(int fd, uint64_t region, uint64_t size, uint64_t quantum);
/* Maps and checks. EUCLEAN: not a host mm, or of another build. Keeps `fd`. */
int mm_open(struct mm *mm, int fd);
void mm_close(struct mm *mm);
/* Bytes that the frames area really takes in the file, or -errno. */
int64_t mm_frame_bytes(const struct mm *mm);

/* Raises the high-water mark to `value`. */
static inline void mm_raise(_Atomic uint64_t *high, uint64_t value)
{
    uint64_t seen = atomic_load(high);

    while (seen < value && !atomic_compare_exchange_weak(high, &seen, value))
        ;
}

/* frames.c */

/* No frame at or above this number was ever used. Reading the words of those
 * would give memory to holes of the file. */
uint64_t frames_high(const struct mm *mm);
/* Takes a zeroed frame for the table of `level` that spans `addr`. ENOSPC. */
int frame_alloc(struct mm *mm, unsigned slot, unsigned level, uint64_t addr, uint64_t *frame);
/* Gives back a frame that was never linked: still zero. */
void frame_drop(struct mm *mm, uint64_t frame);
/* Gives back a frame that was a table; no process may be walking it. */
int frame_free(struct mm *mm, uint64_t frame);
/* The table that `entry` points to, or NULL if the entry is not sane. */
_Atomic uint64_t *frame_table(const struct mm *mm, uint64_t entry, unsigned level, uint64_t addr);
_Atomic uint64_t *frame_entries(const struct mm *mm, uint64_t frame);

static inline uint64_t frame_entry(uint64_t frame)
{
    return (TABLES_BASE + frame * PAGE_SIZE) | ENTRY_TABLE;
}

static inline uint64_t entry_frame(uint64_t entry)
{
    return ((entry & ENTRY_ADDR) - TABLES_BASE) / PAGE_SIZE;
}

/* vma.c: sets of VMAs are sorted arrays without overlap. */

/* The VMA that holds `offset` in the current snapshot, copied to `vma`. ENOENT:
 * none. EUCLEAN: the snapshot is not sane there. Call inside an epoch, or as the
 * only writer. */
int vma_find(const struct mm *mm, uint64_t offset, struct mm_vma *vma);
/* The current snapshot, checked; count in *used. NULL: it is not sane. */
const struct mm_vma *vma_snapshot(const struct mm *mm, uint64_t epoch, uint64_t *used);
/* Writes to `to` the set `from` with [start, end) taken out and `insert` (may be
 * NULL) put there; neighbours that belong together merge. Returns the new count
 * or -ENOMEM when it would pass `max`. */
int64_t vma_replace(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                    const struct mm_vma *insert, struct mm_vma *to, uint64_t max);
/* The same for the set with VMA_BUSY on all that lies in [start, end). */
int64_t vma_mark_busy(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                      struct mm_vma *to, uint64_t max);
/* Writes to `to` the set `from` with the rights of [start, end) changed to `flags`
 * (enum vma_flags), VMAs split and merged as that needs. Returns the new count or
 * -ENOMEM: a hole in [start, end), or more than `max`. */
int64_t vma_protect(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                    uint32_t flags, struct mm_vma *to, uint64_t max);
/* Writes to `to` the set `from` with what is VMA_BUSY opened, or (`drop`) left out;
 * returns the new count. */
uint64_t vma_end_busy(const struct mm_vma *from, uint64_t used, bool drop, struct mm_vma *to);

/* slots.c */

/* No slot at or above this number was ever used. */
unsigned slots_high(const struct mm *mm);
/* Claims a free slot for a slot_process(). Returns its number, -EUSERS: all taken. */
int slot_claim(struct mm *mm, uint64_t process, uint64_t start_time);
/* Inside an epoch a snapshot, tables and pages stay as they are found. */
void slot_enter(struct mm *mm, unsigned slot);
void slot_leave(struct mm *mm, unsigned slot);
/* Returns 0 when no fault that began before the current epoch is still going
 * on, else -EAGAIN and the number of such a client's slot. */
int slot_grace(struct mm *mm, unsigned *straggler);
/* The client is gone: recovers what it had in hand, keeps its counts. */
int slot_reap(struct mm *mm, unsigned slot);
/* The same, if the slot still has that claim (0: none yet). -ESTALE: the other side
 * has freed it before, and somebody else may have it now. */
int slot_release(struct mm *mm, unsigned slot, uint64_t claim);

/* audit.c */

/* What an audit of a whole region found. In a quiescent region everything from
 * `held` on is 0, and frame_bytes == 4096 * sum(tables). */
struct mm_audit {
    uint64_t tables[4]; /* reachable, by level: PTE, PMD, PUD, PGD pages */
    uint64_t leaves;    /* present leaf entries */
    uint64_t frame_bytes;
    uint64_t held;   /* frames in somebody's hand */
    uint64_t lost;   /* frames in use that no entry reaches */
    uint64_t stray;  /* leaf entries outside every VMA */
    uint64_t bad;    /* entries that point nowhere sane or have wrong bits */
    uint64_t vmas;   /* VMAs out of order, overlapping or outside the region */
};

int mm_audit(struct mm *mm, struct mm_audit *audit);
/* After a server's death: frees tables it had cut off and not yet freed. */
int mm_sweep(struct mm *mm);

#endif
