/*
 * landlock.h - descriptors by which nobody can make a file shorter.
 *
 * Attached processes write to a region's files, so that they get them open for writing, and one
 * ftruncate(2) would be SIGBUS for all others. Files on a tmpfs cannot be sealed as memfds can. But
 * what a thread opens under Landlock keeps the thread's restrictions, wherever it is passed.
 */
#ifndef MSHARE_LANDLOCK_H
#define MSHARE_LANDLOCK_H

/* open(2) in a thread of its own that may not truncate: ftruncate(2) of the descriptor is EACCES,
 * to a larger size too. Returns a descriptor or -errno. `*lacking`: 0, or the errno for which this
 * kernel does not restrict the thread; the descriptor is an ordinary one then. */
int landlock_open(const char *path, int flags, int *lacking);

#endif
