/*
 * frames.h - the frames that tables are made of: taken, linked, given back. Functions return 0
 * or -errno unless the comment says otherwise.
 */
#ifndef MSHARE_FRAMES_H
#define MSHARE_FRAMES_H

#include "core/mm.h"

/* No frame at or above this number was ever used. Reading their words would give
 * memory to holes of the file. */
uint64_t frames_high(const struct mm *mm);
/* Takes a zeroed frame for the table of `level` that spans `addr`. ENOSPC. */
int frame_alloc(struct mm *mm, unsigned slot, unsigned level, uint64_t addr, uint64_t *frame);
/* Gives back a frame that was never linked: still zero. Precondition: it is ours, HELD. */
void frame_drop(struct mm *mm, uint64_t frame);
/* Gives back a frame that was a table. Precondition: the server, and no process can be
 * walking it: a grace period has passed since its entry went. */
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

#endif
