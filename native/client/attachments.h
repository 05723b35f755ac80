/*
 * attachments.h - the table of attachments: its lock, and who is where. See attachment.h for
 * the order of the locks.
 */
#ifndef MSHARE_ATTACHMENTS_H
#define MSHARE_ATTACHMENTS_H

#include "client/attachment.h"

/* About 250 windows of 512 GiB fit an address space. */
#define ATTACHMENTS_MAX 256

extern struct attachment attachments[ATTACHMENTS_MAX];
/* Entries from here on never held an attachment and are not read: each would cost a page
 * fault, in every child too. Only grows, under the table's lock. */
extern _Atomic unsigned attachments_used;

/* Takes the table's lock. In the thread that holds it, no signal handler runs and no
 * cancellation acts meanwhile, and it may take the lock again. When the lock is free again,
 * errno is as before. Precondition: no att->lock held. */
void attachments_lock(void);
/* Precondition: the table's lock held. */
void attachments_unlock(void);
/* Now that something is attached: from here on a child of a bare clone(2), which knows nothing
 * of fork.c, waits for no thread of its parent. Precondition: the table's lock held. */
void attachments_mark(void);
/* In a forked child, whose only thread holds the lock. */
void attachments_relock(void);
/* Whether the attachments are this process's: a child of vfork(2) runs in its parent's
 * memory, but the descriptors it changes are its own. Precondition: none. */
bool attachments_own(void);
/* Whether it is another's whose memory this process runs in, as between vfork(2) and execve(2).
 * Precondition: the table's lock held. */
bool attachments_shared(void);
/* Whether this process has only inherited them, by a clone(2) that fork.c did not hear of.
 * Precondition: the table's lock held. */
bool attachments_bare(void);
/* Whether `att` is live and its window overlaps [start, end).
 * Precondition: the table's lock held. */
bool attachment_overlaps(const struct attachment *att, uint64_t start, uint64_t end);
/* The attachment with the lowest window that overlaps [start, end), or NULL.
 * Precondition: the table's lock held. */
struct attachment *attachment_over(uint64_t start, uint64_t end);
/* Whether [start, end) has a part of a window, and not all of it. Adopted memory does not count.
 * Precondition: the table's lock held. */
bool attachments_split(uint64_t start, uint64_t end);
/* The attachment whose host mm is mapped at `addr`. NULL: none.
 * Precondition: the table's lock held. */
struct attachment *attachment_of_tables(uint64_t addr);
/* An entry for a new attachment; NULL: all are in use. Precondition: the table's lock held. */
struct attachment *attachment_unused(void);
/* Whether [start, end) is near any window; false rules an overlap out. Precondition: none. */
bool attachments_near(uint64_t start, uint64_t end);
/* The window of `att` is about to be mapped: from now on attachments_near() knows it.
 * Precondition: the table's lock held. */
void attachments_cover(const struct attachment *att);

#endif
