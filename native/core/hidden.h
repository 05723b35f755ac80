/*
 * hidden.h - which descriptors of the process are ours. The preload library protects
 * them from a program that closes "all" descriptors. Nobody else asks. Under the
 * library, the core's own close() takes the mark off (preload/sys.c).
 */
#ifndef MSHARE_HIDDEN_H
#define MSHARE_HIDDEN_H

#include <stdbool.h>

/* fs.nr_open's default: no process has more. */
#define HIDDEN_FDS (1u << 20)

/* `yes`: from now on none is. Precondition: none was. */
void hidden_none(bool yes);
/* Whether some may be. */
bool hidden_any(void);
void hidden_add(int fd);
void hidden_remove(int fd);
bool hidden_is(int fd);
/* The first of our descriptors in [first, last], or -1. */
int hidden_next(unsigned first, unsigned last);

#endif
