/*
 * fork.h - attachments in a child of fork().
 */
#ifndef MSHARE_FORK_H
#define MSHARE_FORK_H

/* Makes fork() call us: as early as possible, and once in each process. Precondition: none. */
void fork_prepare(void);
/* There will soon be something to attach in a child, too. Precondition: no lock held, since the C
 * library has one of its own there, and fork(2) may hold that while it waits for the table's. */
void fork_attached(void);

#endif
