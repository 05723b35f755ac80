/*
 * confine.h - what a shadow may do: serve, and nothing else. The program can write its memory,
 * and so decide what it does; and the program may have given up rights that the shadow was
 * born with. SECURITY.md has the argument.
 */
#ifndef MSHARE_CONFINE_H
#define MSHARE_CONFINE_H

#include <stdbool.h>

/* The address of the server's socket `path` in memory that nobody can change any more, so that
 * a shadow can be left the right to connect to it alone. The same for the same path, in
 * children of fork(2), too. NULL: there is none. Precondition: the table's lock held. */
const void *confine_address(const char *path);
/* Connects to it, without waiting. A socket or -errno. Precondition: in the shadow. */
int confine_connect(const void *address);
/* Gives up all capabilities, and all system calls that serving does not need.
 * 0 or -errno. Precondition: in the shadow. */
int confine(const void *address);

#endif
