/*
 * bare.h - a child that fork(3) does not know of: made by _Fork(3), or by clone(2) without
 * CLONE_VM. It has inherited its parent's windows as plain mappings, and nobody takes its faults.
 */
#ifndef MSHARE_BARE_H
#define MSHARE_BARE_H

/* In such a child, as soon as somebody knows of it: its windows keep the rights that there are now,
 * since nobody will refuse an access. May be called in a signal handler. Precondition: none. */
void bare_begin(void);
/* Before an attachment is made: one of the parent's thread must not wait for its faults. What the
 * child has inherited is from then on plain memory. Precondition: the table's lock held. */
void bare_own(void);

#endif
