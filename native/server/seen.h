/*
 * seen.h - which pages of a file processes have in their own page tables, as entries of a region.
 *
 * Both are of a piece of the region: a bit for each page that somebody has, and one for each 2 MiB
 * that somebody has by pages of 4 KiB. Bit i is bit i % 8 of byte i / 8.
 */
#ifndef MSHARE_SEEN_H
#define MSHARE_SEEN_H

#include "core/mm.h"

/* Sets the bits of what is mapped at [start, end) of the process whose /proc/PID/pagemap is open;
 * `offset` is where that lies in the piece, which starts on 2 MiB.
 * 0, or -errno: ENOTTY before Linux 6.7, ESRCH if it has ended. */
int seen_pages(int pagemap, uint64_t start, uint64_t end, uint64_t offset, uint8_t *pages,
               uint8_t *small);
/* Exactly these pages have entries in the piece [start, end), region offsets: an entry for 2 MiB
 * where nobody has smaller ones. NULL: none. New ones are faults of nobody. 0 or -errno.
 * Precondition: the only writer, and nobody is attached. */
int seen_show(struct mm *mm, uint64_t start, uint64_t end, const uint8_t *pages,
              const uint8_t *small);

#endif
