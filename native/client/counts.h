/*
 * counts.h - a client's counters in its slot, for `msharefs stat` and `clients`. One thread
 * of the process writes at a time: a load and a store are enough, and no reader sees half a
 * number.
 */
#ifndef MSHARE_COUNTS_H
#define MSHARE_COUNTS_H

#include "client/attachment.h"

/* This process's counters. */
static inline struct mm_counters *counts_of(const struct attachment *att)
{
    return &att->mm.slots[att->slot].counters;
}

/* Whether the quantum of region offset `offset` is linked. Precondition: att->lock held. */
bool counts_linked(const struct attachment *att, uint64_t offset);
/* Counts a fault that filled entries, as fault_fill() has reported.
 * Precondition: att->lock held, inside an epoch. */
void counts_fault(struct attachment *att, const struct fault *fault);
/* Counts the pages of region offsets [start, end) as reachable; `fresh` of them were not before.
 * Precondition: att->lock held, inside an epoch. */
void counts_reached(struct attachment *att, uint64_t start, uint64_t end, uint64_t fresh);

#endif
