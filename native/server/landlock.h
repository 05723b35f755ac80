/*
 * landlock.h - descriptors by which nobody can make a file shorter.
 *
 * Attached processes write to a region's files, so that they get them open for writing, and one
 * ftruncate(2) would be SIGBUS for all others. Files on a tmpfs cannot be sealed as memfds can. But
 * what a thread opens under Landlock keeps the thread's restrictions, wherever it is passed.
 */
#ifndef MSHARE_LANDLOCK_H
#define MSHARE_LANDLOCK_H

/* open(2) of `count` files in a thread of its own that may not truncate:
 * ftruncate(2) of the descriptors is EACCES, to a larger size too. Fills `fds` and returns 0, or
 * -errno with none open and *failed the number of the file. `*lacking`: 0, or the errno for which
 * this kernel does not restrict the thread; the descriptors are ordinary ones then. */
int landlock_open(const char *const *paths, unsigned count, int flags, int *fds, unsigned *failed,
                  int *lacking);

#endif
