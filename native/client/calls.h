/*
 * calls.h - mshare_advise() and its relatives: verbs on a region, through a descriptor of it.
 */
#ifndef MSHARE_CALLS_H
#define MSHARE_CALLS_H

#include "msharefs.h"

/* Puts the nodes of an mbind(2) into the argument of ours. -EINVAL: there is no such node. */
int calls_set_nodes(struct mshare_mbind *range, const unsigned long *nodemask,
                    unsigned long maxnode);

#endif
