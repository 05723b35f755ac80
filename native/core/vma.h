/*
 * vma.h - sets of VMAs: sorted arrays without overlap, one of which is the current snapshot.
 */
#ifndef MSHARE_VMA_H
#define MSHARE_VMA_H

#include "core/mm.h"

/* The VMA that holds `offset` in the current snapshot, copied to `vma`. ENOENT:
 * none. EUCLEAN: the snapshot is not sane there.
 * Precondition: inside an epoch, or the only writer. */
int vma_find(const struct mm *mm, uint64_t offset, struct mm_vma *vma);
/* The current snapshot, checked; count in *used (out). NULL: it is not sane.
 * Precondition: inside an epoch, or the only writer. */
const struct mm_vma *vma_snapshot(const struct mm *mm, uint64_t epoch, uint64_t *used);
/* Writes to `to` the set `from` with [start, end) taken out and `insert` (may be
 * NULL) put there; neighbours that belong together merge. Returns the new count,
 * or -ENOMEM if it would exceed `max`. */
int64_t vma_replace(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                    const struct mm_vma *insert, struct mm_vma *to, uint64_t max);
/* Writes to `to` the set `from` with VMA_BUSY on everything in [start, end); returns as above. */
int64_t vma_mark_busy(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                      struct mm_vma *to, uint64_t max);
/* Writes to `to` the set `from` with the rights of [start, end) changed to `flags`
 * (enum vma_flags), splitting and merging VMAs as needed. Returns the new count, or
 * -ENOMEM: there is a hole in [start, end), or there would be more than `max`. */
int64_t vma_protect(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                    uint32_t flags, struct mm_vma *to, uint64_t max);
/* Does so with any flags of [start, end): takes those in `clear` away, then adds `set_flags`. */
int64_t vma_flag(const struct mm_vma *from, uint64_t used, uint64_t start, uint64_t end,
                 uint32_t clear, uint32_t set_flags, struct mm_vma *to, uint64_t max);
/* Writes to `to` the set `from`, without VMA_BUSY, or (`drop`) without the VMAs that
 * have it; returns the new count. */
uint64_t vma_end_busy(const struct mm_vma *from, uint64_t used, bool drop, struct mm_vma *to);

#endif
