/*
 * fork.h - attachments in a child of fork().
 */
#ifndef MSHARE_FORK_H
#define MSHARE_FORK_H

/* Has fork() call us; once a process. Precondition: none. */
void fork_prepare(void);

#endif
