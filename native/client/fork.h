/*
 * fork.h - attachments in a child of fork().
 */
#ifndef MSHARE_FORK_H
#define MSHARE_FORK_H

/* Makes fork() call us; once in each process. Precondition: none. */
void fork_prepare(void);

#endif
