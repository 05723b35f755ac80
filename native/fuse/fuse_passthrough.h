/*
 * FUSE passthrough: a mmap(2) of a file of ours maps another file, the backing file, with no request to us ever after.
 *
 * Neither pyfuse3 nor the libfuse of Debian 12 knows it, so three messages are completed on their way to the kernel:
 * the answer to INIT asks for it, and the answers to OPEN and CREATE name the backing file. Which one, the file handle
 * says: see PASSTHROUGH_SHIFT. Needs CAP_SYS_ADMIN and Linux 6.9, both judged by passthrough_open() alone: a kernel
 * that does not know the request ignores it.
 *
 * All opens of an inode that overlap in time must name the same backing id, or none: the kernel answers EIO to others.
 */
#ifndef MSHAREFS_FUSE_PASSTHROUGH_H
#define MSHAREFS_FUSE_PASSTHROUGH_H

/* A file handle is a number of its maker's below, and above this bit the backing id; 0 there: no backing file. */
#define PASSTHROUGH_SHIFT 32

/* Asks the kernel for passthrough when it shakes hands. Between mounting and the first request; 0 or -errno. */
int passthrough_request(void);
/* Registers an open regular file as a backing file: its id, > 0, or -errno. The descriptor may be closed then.
 * EPERM: no CAP_SYS_ADMIN, or passthrough was not requested; ENOTTY: an older kernel; ELOOP: a stacked file system. */
int passthrough_open(int fd);
/* Ends a registration; mappings and open files keep what they have. 0 or -errno. */
int passthrough_close(int id);

#endif
