/*
 * touched.h - which 2 MiB spans of the region a client has in its real page
 * tables. Rights and pages are taken from it only there: write-protecting a span
 * that it never touched would give it page tables for nothing.
 *
 * Each slot has a bitmap in shared memory, with one bit for each span. A page of
 * the bitmap takes memory only once it is used (4 KiB for 64 GiB touched).
 * slot.touched says which pages are in use: its bit n stands for n, n + 64, ...
 */
#ifndef MSHARE_TOUCHED_H
#define MSHARE_TOUCHED_H

#include "core/mm.h"
#include "core/uffd.h"

/* The client of `slot` is about to make pages of [offset, offset + bytes) reachable.
 * Precondition: inside an epoch. */
void touched_mark(struct mm *mm, unsigned slot, uint64_t offset, uint64_t bytes);
/* Whether it has made any page reachable in the span of `offset`. */
bool touched_has(const struct mm *mm, unsigned slot, uint64_t offset);
/* The client of `slot` has given back the whole span at `offset`.
 * Precondition: inside an epoch, and no change of rights is under way there. */
void touched_unmark(struct mm *mm, unsigned slot, uint64_t offset);
/* Finds the first run of touched spans in [*start, end): its bounds, cut to that range,
 * go into *start (in and out) and *stop. False: there is none. */
bool touched_run(const struct mm *mm, unsigned slot, uint64_t *start, uint64_t end, uint64_t *stop);
/* Clears the bitmap, when the slot is freed. */
void touched_clear(struct mm *mm, unsigned slot);
/* Changes the real page tables of the client of `slot`, process `pid` as we see it, in the spans
 * of [start, end) that it has touched, through a duplicate of its userfaultfd. Returns where it
 * stopped: `end`, or less if it has worked long enough and others should have a turn; or -errno. */
int64_t touched_change(const struct mm *mm, unsigned slot, int uffd, int pid, uint64_t start,
                       uint64_t end, enum uffd_change change);

#endif
