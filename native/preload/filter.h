/*
 * filter.h - whether the program has given itself a seccomp(2) filter.
 */
#ifndef MSHARE_PRELOAD_FILTER_H
#define MSHARE_PRELOAD_FILTER_H

#include <stdbool.h>

/* Whether it has: then calls that it does not make itself may end it. */
bool filter_given(void);
/* The program makes this system call: it may be the one. */
void filter_see(long number, long first);

#endif
