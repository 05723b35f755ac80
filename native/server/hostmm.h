/*
 * hostmm.h - changes of a host mm. Precondition of all: the server, one change at a time.
 *
 *   hostmm_map(), _unmap(),    publishes; faults see the new snapshot
 *     _protect(), _drop() or
 *     _remove()
 *   slot_grace() == 0          nobody is inside a fault on the old one
 *                              after _protect(): take the rights from the clients;
 *                              if objects were there: have the clients let go of them
 *   hostmm_finish()            clears entries, frees frames and pages; sets rights
 *   hostmm_abort()             instead, when a client does not do its part
 *
 * A server that dies in between leaves an intent: after mm_sweep() and a grace
 * period its successor calls hostmm_recover().
 */
#ifndef MSHARE_HOSTMM_H
#define MSHARE_HOSTMM_H

#include "core/mm.h"

/* All that publish answer EBUSY, with nothing changed,
 * if a client is inside a fault that is older than the current snapshot: wait for the
 * grace period and call again. EINVAL: start or end would cut a 2 MiB page.
 *
 * Maps `vma` (start, end, offset, flags, object); the serial number is assigned here.
 * Older mappings there are gone after hostmm_finish(). ENOMEM: too many VMAs. */
int hostmm_map(struct mm *mm, struct mm_vma vma);
/* Takes [start, end) out. */
int hostmm_unmap(struct mm *mm, uint64_t start, uint64_t end);
/* Changes the rights of [start, end) to `prot` (enum vma_flags). ENOMEM: it has a hole,
 * or there are too many VMAs. */
int hostmm_protect(struct mm *mm, uint64_t start, uint64_t end, uint32_t prot);
/* Publishes other flags of [start, end) that nobody's page tables depend on: takes `clear` away,
 * then adds `set_flags` (enum vma_flags). That is all; there is nothing to finish. ENOMEM: as
 * above. */
int hostmm_flag(struct mm *mm, uint64_t start, uint64_t end, uint32_t clear, uint32_t set_flags);
/* Takes the entries of [start, end) out, not the pages, and changes flags as hostmm_flag(). */
int hostmm_drop(struct mm *mm, uint64_t start, uint64_t end, uint32_t clear, uint32_t set_flags);
/* Takes the entries and the pages of [start, end) out; the mappings stay. */
int hostmm_remove(struct mm *mm, uint64_t start, uint64_t end);
/* Waits for whoever keeps the files of the region locked, as hostmm_finish() would, but changes
 * nothing: whoever gives up meanwhile may take the change back. */
void hostmm_reach(const struct mm *mm, int mem_fd);
/* Completes the change; `mem_fd` holds the pages. It may wait for whoever keeps the files locked.
 * Precondition: its grace period is over (slot_grace() said 0). */
int hostmm_finish(struct mm *mm, int mem_fd);
/* Does so if nothing has to be freed, and waits for nobody. -EAGAIN: hostmm_finish() has to. */
int hostmm_finish_at_once(struct mm *mm, int mem_fd);
/* Is there a change that is not finished? */
bool hostmm_pending(const struct mm *mm);
/* Goes back to the previous snapshot. Precondition: a change that is not finished. */
void hostmm_abort(struct mm *mm);
/* After a server's death: completes the change that it was making, or takes it back.
 * Precondition: mm_sweep(), then a grace period. */
int hostmm_recover(struct mm *mm, int mem_fd);
/* Looks along [start, end), from its beginning, for the first thing that is against a verb: a
 * mapping with any flag of `none_of` (EPERM if that is VMA_SEALED, otherwise EINVAL), or without
 * one of `needed` (EACCES); or a hole (ENOMEM), unless `holes` do not matter. */
int hostmm_check(struct mm *mm, uint64_t start, uint64_t end, uint32_t none_of, uint32_t needed,
                 bool holes);
/* The flags that any mapping in [start, end) has (enum vma_flags). */
uint32_t hostmm_flags(struct mm *mm, uint64_t start, uint64_t end);
/* Is anything mapped in [start, end)? For MAP_FIXED_NOREPLACE. */
bool hostmm_mapped(struct mm *mm, uint64_t start, uint64_t end);
/* How many bytes of [start, end) are mapped. */
uint64_t hostmm_mapped_bytes(struct mm *mm, uint64_t start, uint64_t end);
/* Is there an object? Clients may have mapped it, so they are asked to let go (MSG_REVOKE). */
bool hostmm_has_objects(struct mm *mm, uint64_t start, uint64_t end);
/* Is anything executable? Windows have to be arranged for it (MSG_ARRANGE). */
bool hostmm_has_exec(struct mm *mm, uint64_t start, uint64_t end);

#endif
