/*
 * proc.h - a process's questions to /proc about itself. No stdio and no malloc, because it
 * also runs in the child of a fork, and inside somebody else's program. Precondition of all:
 * none.
 */
#ifndef MSHARE_PROC_H
#define MSHARE_PROC_H

#include <stddef.h>
#include <stdint.h>

/* The beginning of a small file, as a string; empty if it cannot be read. */
void proc_read(const char *path, char *text, size_t size);
/* Field 22 of /proc/self/stat, in clock ticks: tells a process from a later one with
 * the same number. 0: unknown. */
uint64_t proc_start_time(void);
/* The inode number of our pid namespace. 0: unknown, without /proc. */
uint32_t proc_pid_namespace(void);
/* In a forked child: it is another process, in the same namespace if it sees its parent. */
void proc_forked(void);

#endif
