/*
 * FUSE passthrough: an mmap(2) of one of our files maps another file, the backing file, and never
 * asks us again.
 *
 * Neither pyfuse3 nor the libfuse of Debian 12 knows it, so three messages are completed on their
 * way to the kernel: the answer to INIT asks for it, and the answers to OPEN and CREATE name the
 * backing file, which the file handle tells: see PASSTHROUGH_SHIFT. It needs CAP_SYS_ADMIN and
 * Linux 6.9; passthrough_open() alone finds out about both, since a kernel that does not know the
 * request ignores it.
 *
 * All opens of an inode that overlap in time must name the same backing id, or none; otherwise the
 * kernel answers EIO.
 */
#ifndef MSHAREFS_FUSE_PASSTHROUGH_H
#define MSHAREFS_FUSE_PASSTHROUGH_H

/* Below this bit a file handle is its maker's number, above it the backing id; 0 there: no backing
 * file. */
#define PASSTHROUGH_SHIFT 32
/* This bit of the number: close(2) is to be told (FUSE_FLUSH). */
#define PASSTHROUGH_FLUSH 31

/* Asks the kernel for passthrough when it shakes hands. 0 or -errno.
 * Precondition: mounted, and no request was read yet. */
int passthrough_request(void);
/* Registers an open regular file as a backing file: its id, > 0, or -errno. The descriptor may be
 * closed then. EPERM: no CAP_SYS_ADMIN, or passthrough was not requested; ENOTTY: an older kernel;
 * ELOOP: a stacked file system. */
int passthrough_open(int fd);
/* Ends a registration; mappings and open files keep their backing file. 0 or -errno. */
int passthrough_close(int id);

#endif
