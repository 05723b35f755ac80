/*
 * guard.h - a host mm that somebody makes shorter does not end the server.
 *
 * The server's user can truncate(2) a `.mm`, and so can a client where there is no landlock.h; and
 * where the state directory's file system is full, a hole in it cannot be filled. Either way
 * the next access is SIGBUS. Here the mapping is replaced by zeros before the access goes on: what
 * was being done ends with nothing found, and guard_cut() tells that no more is to be done.
 */
#ifndef MSHARE_GUARD_H
#define MSHARE_GUARD_H

#include "core/mm.h"

/* From now on accesses to the mapping of `mm` are safe. 0, or -errno; ENOMEM: too many.
 * A SIGBUS elsewhere goes to whoever handled it before. Precondition: one thread at a time calls
 * this and guard_remove(). */
int guard_add(const struct mm *mm);
/* Before mm_close(). */
void guard_remove(const struct mm *mm);
/* Whether an access has failed: what `mm` shows is zeros, and its region is lost to us. */
bool guard_cut(const struct mm *mm);

#endif
