/*
 * tend.h - the work of a shadow: it takes the faults of an attachment, and hears the server.
 */
#ifndef MSHARE_TEND_H
#define MSHARE_TEND_H

#include "client/attachment.h"

/* How long after its birth a shadow first looks whether its program was replaced by exec(2): a
 * child of fork(2) mostly is, and soon. It then looks less and less often. */
#define TEND_EXEC_MIN_MS 2

/* Does it until the program has ended or been replaced, or wants it to end.
 * Precondition: in the shadow. */
_Noreturn void tend(struct attachment *att);
/* Until something happens that takes more than to watch, or for a while at most: ends with the
 * program. Precondition: in the shadow, whose `idle` is set. */
void tend_idle(struct attachment *att);
/* An idle shadow takes what its parent's has sent, if anything is to come. 0 or -errno.
 * Precondition: in the shadow; att->lock held, by the program for it or by itself. */
int tend_take(struct attachment *att);
/* Takes att->lock, and does what the program asks for meanwhile. Precondition: in the shadow. */
void tend_lock(struct attachment *att);

#endif
