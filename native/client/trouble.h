/*
 * trouble.h - why an access ends in SIGBUS though its mapping permits it: for whoever looks for
 * that reason, in a line on stderr. The program cannot ask, for its signal has room for an address
 * only.
 */
#ifndef MSHARE_TROUBLE_H
#define MSHARE_TROUBLE_H

#include "core/fault.h"

/* Reads MSHAREFS_DEBUG. Not for the service thread. */
void trouble_choose(void);
/* Says what went wrong with a fault that is FAULT_BROKEN, if anybody has asked for that. A shadow
 * says nothing: it may not write anywhere (confine.h). */
void trouble_tell(const struct fault *fault);

#endif
