/*
 * resolve.h - one userfaultfd event, answered: host mm first, then the real MMU.
 */
#ifndef MSHARE_RESOLVE_H
#define MSHARE_RESOLVE_H

#include "client/attachment.h"

/* Answers a fault at `addr`; `flags` are UFFD_PAGEFAULT_FLAG_*.
 * Precondition: att->lock held, on the service thread. */
void resolve_fault(struct attachment *att, uint64_t addr, uint64_t flags);
/* Takes the server's answer to a fault of a reader. Precondition: as resolve_fault(). */
void resolve_told(struct attachment *att, const struct msg *msg);
/* Takes the server's answer to CHARGE. Precondition: as resolve_fault(). */
void resolve_charged(struct attachment *att, const struct msg *msg);
/* Takes the pages of region offsets [start, end) out of the real page tables. With
 * `objects` (REVOKE_OBJECTS), pages of objects may be among them. 0 or -errno.
 * Precondition: att->lock held, on the service thread. */
int resolve_revoke(struct attachment *att, uint64_t start, uint64_t end, bool objects);

#endif
