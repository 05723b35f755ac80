/*
 * slots.h - one slot for each attached process: its epoch, its end, and the writer's grace period.
 */
#ifndef MSHARE_SLOTS_H
#define MSHARE_SLOTS_H

#include "core/mm.h"

/* No slot at or above this number was ever used. */
unsigned slots_high(const struct mm *mm);
/* Claims a free slot for a slot_process(). Returns its number, or -EUSERS: all are taken. */
int slot_claim(struct mm *mm, uint64_t process, uint64_t start_time);
/* Inside an epoch a snapshot, tables and pages stay as they are found.
 * Precondition: the slot is ours, and outside of epochs. */
void slot_enter(struct mm *mm, unsigned slot);
/* Precondition: inside an epoch. */
void slot_leave(struct mm *mm, unsigned slot);
/* Returns 0 when no fault that began before the current epoch is still going
 * on; otherwise -EAGAIN, and the slot of such a client in *straggler. */
int slot_grace(struct mm *mm, unsigned *straggler);
/* Whoever was inside an epoch of that slot has died there: recovers the frame it had in hand. */
void slot_settle(struct mm *mm, unsigned slot);
/* The client is gone: recovers the frame that it had in hand, and keeps its counts.
 * Precondition: its process has ended, or lets the slot go itself. */
int slot_reap(struct mm *mm, unsigned slot);
/* Reaps the slot if it still has that claim (0: none yet). -ESTALE: the other side has
 * freed it already, and another client may have it now. */
int slot_release(struct mm *mm, unsigned slot, uint64_t claim);
/* slot_release() of a client that has left nothing: takes no lock of the file, and no time.
 * -EAGAIN: it may have touched something, or died inside a fault. */
int slot_release_at_once(struct mm *mm, unsigned slot, uint64_t claim);

#endif
