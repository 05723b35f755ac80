/*
 * inner.h - ordinary calls on a window that are calls on its region: with -o window=inner they
 * hold for every process, as the region's own verbs do (msharefs.h).
 *
 *   mprotect(2) of a part      mshare_protect()         munmap(2) of a part    mshare_unmap()
 *   madvise(2)                 mshare_advise()          mmap(2) over a part    mshare_map()
 *   mlock(2), munlock(2)       mshare_lock(), unlock    mbind(2)               mshare_mbind()
 *   mincore(2), msync(2)       mshare_query(), sync     mseal(2)               mshare_seal()
 *
 * A program need not have kept a descriptor of the region: a connection of its own, made for the
 * call, has the rights of the attachment (MSG_WINDOW, core/protocol.h). While the server works,
 * none of our locks is held, since it may have to ask this process for something.
 */
#ifndef MSHARE_PRELOAD_INNER_H
#define MSHARE_PRELOAD_INNER_H

#include "preload/mapping.h"
#include "preload/range.h"

/* A part of a region, and by which attachment it is asked for. Bytes. */
struct inner {
    uint64_t offset, size;
    uint64_t region, slot, claim, base;
    char path[MSG_TEXT]; /* of the server's socket */
};

/* Looks whose call it is. 1: that of a region, which `inner` names. 0: as without such windows.
 * -ENOMEM: it goes beyond the window. Precondition: none of our locks held. */
int inner_of(struct range range, struct inner *inner);
/* As inner_of(), for a call that takes windows away where it covers the whole of them: 0. */
int inner_part_of(struct range range, struct inner *inner);

/* Each returns 0 or -errno, as the verb of the region of that name. */
int inner_map(const struct inner *inner, const struct mmap_call *call);
int inner_unmap(const struct inner *inner);
int inner_protect(const struct inner *inner, int prot);
int inner_advise(const struct inner *inner, int advice);
/* A verb that has a range and perhaps flags: the number of its ioctl. */
int inner_verb(const struct inner *inner, unsigned long command, unsigned flags);
int inner_mbind(const struct inner *inner, int mode, const unsigned long *nodes,
                unsigned long max_node, unsigned flags);
/* Of MSHARE_QUERY_PAGES at most. */
int inner_query(const struct inner *inner, unsigned char *vec);

#endif
