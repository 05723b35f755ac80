/*
 * readers.h - what the server does for attachments whose descriptor is open for reading only.
 *
 * A reader has the host mm mapped read-only. It cannot claim a slot, fill an entry, or say which
 * spans it has touched: the server does that, in the slot that it has claimed for the reader.
 * Precondition of all: on the thread that changes VMAs, which does nothing else meanwhile.
 */
#ifndef MSHARE_READERS_H
#define MSHARE_READERS_H

#include "core/mm.h"
#include "core/protocol.h"

/* Claims a slot for process `pid`, whose window at `base` has `bytes` of the region from `offset`
 * on. Returns its number; -EUSERS. -EINVAL: there is no such part. */
int readers_claim(struct mm *mm, uint32_t pid, uint64_t start_time, uint64_t base, uint32_t prot,
                  uint32_t way, uint64_t offset, uint64_t bytes);
/* The slot that an earlier server claimed for it; that server may have died at any instruction of
 * ours. -ENOENT: there is none. */
int readers_find(struct mm *mm, uint32_t pid, uint64_t start_time, uint64_t base);
/* Puts the reader's own figures into its slot. */
void readers_figures(struct mm *mm, unsigned slot, const struct figures *figures);
/* A fault of the reader: the host mm's part of it, and the page itself in `mem_fd`. */
void readers_fault(struct mm *mm, unsigned slot, int mem_fd, const struct fault_ask *ask,
                   struct fault_told *told);

#endif
