/*
 * view.h - the window of an attachment as the kernel sees it: the mapping of .mem, its
 * userfaultfd, its protection, and waking the threads that wait for a page of it.
 */
#ifndef MSHARE_VIEW_H
#define MSHARE_VIEW_H

#include "client/attachment.h"

/* The MAP_* flags of every mapping of .mem in a window. Precondition: none. */
int view_flags(const struct attachment *att);
/* Maps the window over its reservation, PROT_NONE until it is watched. 0 or -errno.
 * Precondition: the table's lock held. */
int view_map(const struct attachment *att);
/* The same of region offsets [start, end), over whatever is there. Precondition: as view_map(). */
int view_map_part(const struct attachment *att, uint64_t start, uint64_t end);
/* Maps it over memory with the same bytes, with the attachment's rights at once: threads that use
 * the memory notice nothing. What they touch before it is watched is to be dropped then.
 * 0 or -errno. Precondition: the table's lock held. */
int view_map_over(const struct attachment *att);
/* Makes a userfaultfd, with the UFFD_FEATURE_* `more` beside those we always need, or -errno.
 * Precondition: a lock that protects att->dev_fd. */
int view_uffd(const struct attachment *att, uint64_t more);
/* Wakes all threads that wait for a page of region offsets [start, end), to fault again.
 * Precondition: att->lock held. */
void view_wake(const struct attachment *att, uint64_t start, uint64_t end);
/* As view_wake(), of the whole window. Precondition: att->lock held. */
void view_wake_all(const struct attachment *att);
/* Takes the pages of addresses [start, end) out of the process, locked ones too: the next access
 * faults. What the program has unmapped there is passed over. 0 or -errno. Precondition: none. */
int view_drop(uint64_t start, uint64_t end);
/* PROT_* of the window over a mapping with `flags` (enum vma_flags): the attachment's, and
 * execution where the mapping permits it. Precondition: none. */
int view_prot(const struct attachment *att, uint32_t flags);
/* PROT_* of a block of an object over the window at region offset `offset`: the rights that both
 * the mapping with `flags` and the attachment permit, or the program where it has changed them for
 * itself; otherwise execution depends on the mapping alone.
 * Precondition: a lock that protects att->unshared. */
int view_block_prot(const struct attachment *att, uint32_t flags, uint64_t offset);
/* PROT_* of the window at region offset `offset`, where no object is mapped.
 * Precondition: inside an epoch. */
int view_prot_at(const struct attachment *att, uint64_t offset);

/* A userfaultfd of our own, over the window. 0 or -errno. Precondition: as attach_claim(). */
int view_watch(struct attachment *att);

#endif
