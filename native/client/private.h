/*
 * private.h - a window that the program changes for itself by ordinary calls (-o window=private):
 * the process alone is changed, in the spans that unshared.h lists.
 *
 *   who decides                    the region    the program, where it has changed something
 *   what memory is there, if any      x
 *   the rights to it                  x                x
 *   whether anything of it is there                    x   (unmapped, or memory of its own)
 *
 * Linux enforces the program's rights: they are those of the mapping. Where they are less than the
 * region's, faults go the way of all others. Where they are more, the shared tables have nothing to
 * say of such an access: the page is made reachable, and no entry is filled. A reader cannot have
 * more, since its faults are the server's; nor can anybody have more of a file than its mapping
 * in the region permits, whose descriptor the server gives.
 */
#ifndef MSHARE_PRIVATE_H
#define MSHARE_PRIVATE_H

#include "client/attachment.h"

/* What a call is to do; rights are PROT_*, which are not negative. */
enum private_call {
    PRIVATE_ADVICE = -1, /* nothing that could be refused */
    PRIVATE_UNMAP = -2,  /* holes do not matter */
};

/* Whether the process may do so to region offsets [start, end), which the window has: `call` is
 * rights, or enum private_call. 0. ENOMEM: there is a hole of the region. EINVAL: it would split a
 * huge page. EACCES: more than may be had. EPERM: sealed. EAGAIN: the region is being changed
 * there.
 * Precondition: the table's lock held, att->lock not held. */
int private_look(struct attachment *att, uint64_t start, uint64_t end, int call);
/* Whether the process lacks the rights PROT_* `needed` anywhere in [start, end), all of which
 * private_look() has found mapped. Precondition: as private_look(). */
bool private_lacks(struct attachment *att, uint64_t start, uint64_t end, int needed);

/* Gives the process these rights to region offsets [start, end). 0 or -errno.
 * Precondition: both locks held; private_look() said 0. */
int private_protect(struct attachment *att, uint64_t start, uint64_t end, int prot);
/* Takes the process's entries of [start, end) away; data stay. 0 or -errno.
 * Precondition: as private_protect(). */
int private_drop(struct attachment *att, uint64_t start, uint64_t end);

/* Addresses [start, end) are about to be another mapping's, or nobody's: `next` is what the window
 * will have then. -ENOMEM. Precondition: the table's lock held. */
int private_cut(const struct attachment *att, uint64_t start, uint64_t end, struct unshared *next);
/* Now they are. True: nothing is left of the window. Precondition: both locks held. */
bool private_take(struct attachment *att, struct unshared *next);
/* Whether addresses [start, end) have nothing of the window any more.
 * Precondition: a lock that protects att->unshared. */
bool private_gone(const struct attachment *att, uint64_t start, uint64_t end);
/* Writes the number of unshared tables into the slot. Precondition: as private_protect(), or as
 * attach_claim(). */
void private_publish(const struct attachment *att);

/* Whether an access that the region refuses is permitted all the same.
 * Precondition: att->lock held. */
bool private_permits(const struct attachment *att, const struct fault *fault);

#endif
