/*
 * task.h - clone(2), as the kernel has it. The C library's function may be another's by now: a
 * sanitizer's, which takes a process that shares our memory for one that has a copy of it.
 */
#ifndef MSHARE_TASK_H
#define MSHARE_TASK_H

#include <stdatomic.h>

/* Makes a task that does life(arg) on the stack that ends at `stack`, and then exits. It has the
 * caller's thread-local storage without CLONE_SETTLS in `flags`; `alive` is for CLONE_PARENT_SETTID
 * and CLONE_CHILD_CLEARTID. Its number, or -errno. */
int task_new(int (*life)(void *), void *arg, void *stack, int flags, void *storage,
             _Atomic int *alive);

#endif
