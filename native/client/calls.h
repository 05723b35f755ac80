/*
 * calls.h - mshare_advise() and its relatives: verbs on a region, through a descriptor of it.
 */
#ifndef MSHARE_CALLS_H
#define MSHARE_CALLS_H

#include "msharefs.h"

#endif
