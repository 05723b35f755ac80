/*
 * touched.h - which 2 MiB spans of the region a client has in its real page
 * tables. What is taken from a client is taken there only: write-protecting a
 * span that it never touched would give it page tables for nothing.
 *
 * A bitmap a slot, one bit a span, in shared memory; a page of it takes memory
 * only once it is used (4 KiB for 64 GiB touched). slot.touched says which: its
 * bit n stands for the pages n, n + 64, ...
 */
#ifndef MSHARE_TOUCHED_H
#define MSHARE_TOUCHED_H

#include "core/mm.h"
#include "core/uffd.h"

/* The client of `slot` is about to make pages of [offset, offset + bytes) reachable.
 * Call inside an epoch. */
void touched_mark(struct mm *mm, unsigned slot, uint64_t offset, uint64_t bytes);
/* Whether it has made any page reachable in the span of `offset`. */
bool touched_has(const struct mm *mm, unsigned slot, uint64_t offset);
/* The client of `slot` has given back all of the span at `offset`. Call inside an epoch,
 * without a change of rights under way there. */
void touched_unmark(struct mm *mm, unsigned slot, uint64_t offset);
/* The first run of spans with a bit in [*start, end); puts its bounds, cut to that
 * range, into *start and *stop. False: none. */
bool touched_run(const struct mm *mm, unsigned slot, uint64_t *start, uint64_t end, uint64_t *stop);
/* Forgets all; with the slot. */
void touched_clear(struct mm *mm, unsigned slot);
/* Changes the real page tables of the client of `slot`, where it has touched [start, end),
 * through a duplicate of its userfaultfd. Returns where it stopped: `end`, or less after
 * so much that others should have a turn; or -errno. */
int64_t touched_change(const struct mm *mm, unsigned slot, int uffd, uint64_t start, uint64_t end,
                       enum uffd_change change);

#endif
