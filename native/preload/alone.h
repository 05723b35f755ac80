/*
 * alone.h - ordinary calls on a window that are the process's own: with -o window=private they
 * change it for this process alone (client/private.h), as on memory that is its own.
 *
 *   mprotect(2)     the process's rights                    a key other than 0: EINVAL
 *   munmap(2) of a part, mmap(2) with MAP_FIXED, the end of an mremap(2)
 *                   the part is the process's to use        MAP_FIXED of a region: EINVAL
 *   madvise(2)      DONTNEED: its entries go; POPULATE_*: it gets them; REMOVE is EOPNOTSUPP,
 *                   since contents are everybody's
 *
 * Over a hole of the region a call is ENOMEM, and nothing is changed; munmap(2) of one is 0. All
 * others, mlock(2) and mseal(2) among them, answer as with -o window=refuse.
 */
#ifndef MSHARE_PRELOAD_ALONE_H
#define MSHARE_PRELOAD_ALONE_H

#include "client/private.h"
#include "preload/range.h"

/* A call that such windows always refuse; beside enum private_call. */
#define ALONE_REFUSED (-3)

/* Whether a call may be made on all such windows of a range: rights (PROT_*), enum private_call or
 * ALONE_REFUSED. Waits while their regions are being changed. 0 or -errno, and then nothing is to
 * be changed. Precondition: none of our locks held. */
int alone_ready(struct range range, int call);
/* As alone_ready(), for an madvise(2). */
int alone_ready_for(struct range range, int advice);

/* Each makes the call on a range of such a window. 0 or -errno.
 * Precondition: the table's lock held, att->lock not held. */
int alone_protect(struct attachment *att, struct range range, int prot);
int alone_advise(struct attachment *att, struct range range, int advice);

#endif
