/*
 * hostmm.h - changes of a host mm. Only the server calls these, one at a time.
 *
 *   hostmm_map() or _unmap()   publishes; faults see the new snapshot
 *   slot_grace() == 0          nobody is inside a fault on the old one
 *   hostmm_finish()            clears entries, frees frames and pages
 *   hostmm_abort()             instead, when a client does not leave its fault
 *
 * A server that dies in between leaves an intent: after mm_sweep() and a grace
 * period its successor calls hostmm_finish().
 */
#ifndef MSHARE_HOSTMM_H
#define MSHARE_HOSTMM_H

#include "mm.h"

/* Maps `vma` (start, end, offset, flags, object); the serial number is given
 * here. What was there is gone after hostmm_finish(). ENOMEM: too many VMAs. */
int hostmm_map(struct mm *mm, struct mm_vma vma);
/* Takes [start, end) out. */
int hostmm_unmap(struct mm *mm, uint64_t start, uint64_t end);
/* Completes the change whose grace period is over; `mem_fd` holds the pages. */
int hostmm_finish(struct mm *mm, int mem_fd);
/* Goes back to the snapshot before. */
void hostmm_abort(struct mm *mm);
/* Is anything mapped in [start, end)? For MAP_FIXED_NOREPLACE. */
bool hostmm_mapped(struct mm *mm, uint64_t start, uint64_t end);

#endif
