/*
 * identity.h - which file a descriptor leads to, in terms that do not come again when the file
 * has gone: inode numbers do.
 */
#ifndef MSHARE_IDENTITY_H
#define MSHARE_IDENTITY_H

#include <stdint.h>

#define IDENTITY_HANDLE 128 /* MAX_HANDLE_SZ */

struct identity {
    uint64_t device, inode;
    uint64_t mount; /* its number in this boot */
    int64_t born;   /* ns; 0: the file system does not say */
    uint32_t mode, uid;
    int32_t handle_type;
    uint32_t handle_bytes;   /* 0: the file system has no handles */
    uint32_t has_generation; /* the handle has it: no other file ever has the same handle */
    unsigned char handle[IDENTITY_HANDLE];
};

/* Identifies the file of `fd`, which may be open as a path only. Returns 0 or -errno. The file
 * system is asked, and may not answer. */
int identity_read(int fd, struct identity *found);

/* The number of the mount that `fd` leads to, or -errno. Nobody is asked and nothing waited for, as
 * for what /proc/self/fdinfo says of an epoll(7) that somebody keeps locked. */
int identity_mount(int fd);

/* Opens `path` as a path only, which does nothing to a device or a fifo. No part of it may be a
 * symbolic link. Returns a descriptor or -errno. */
int identity_find(const char *path);

/* Opens a file for reading by its handle, on the file system of `fd`: by root only. Returns a
 * descriptor or -errno. ESTALE: it is gone. */
int identity_open(int fd, int type, const unsigned char *bytes, uint32_t count);

#endif
