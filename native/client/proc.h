/*
 * proc.h - a process's questions to /proc about itself. No stdio and no malloc, because it
 * also runs in the child of a fork, and inside somebody else's program. Precondition of all:
 * none.
 */
#ifndef MSHARE_PROC_H
#define MSHARE_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The beginning of a small file, as a string; empty if it cannot be read. */
void proc_read(const char *path, char *text, size_t size);
/* The number of process `pid` in /proc, which may be another pid namespace's; `pidfd` is one of
 * it. 0: it cannot be told. */
int proc_number(int pid, int pidfd);
/* The path of a file of process `pid`, 0: our own; its name begins with a slash and is short. */
#define PROC_PATH 32
void proc_path(char path[PROC_PATH], int pid, const char *name);
/* Field 22 of /proc/PID/stat, in clock ticks: tells a process from a later one with
 * the same number. 0: unknown. */
uint64_t proc_start_time(int pid);
/* The inode number of our pid namespace. 0: unknown, without /proc. */
uint32_t proc_pid_namespace(void);
/* Whether our children are in our own pid namespace, as a shadow must be. */
bool proc_children_here(void);
/* In a forked child: it is another process, in the same namespace if it sees its parent. */
void proc_forked(void);

#endif
