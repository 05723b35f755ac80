/*
 * preload/statfs.c - statfs(2): the program sees the type of the kernel's msharefs on our
 * mounts instead of FUSE's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "msharefs.h"
#include "preload/sys.h"

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif
#define MSHARE_MAGIC 0x4d534852 /* "MSHR"; the series, mm/mshare.c */

/* Whether the file is on the mount that `msharefs run` chose for this program. */
static bool on_our_mount(int directory, const char *path, int flags)
{
    const int ask = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, saved = errno;
    const char *where = getenv("MSHAREFS_MOUNT");
    struct statx mount, file;
    const bool found = where && !statx(AT_FDCWD, where, ask, 0, &mount) &&
                       !statx(directory, path, flags | ask, 0, &file) &&
                       mount.stx_dev_major == file.stx_dev_major &&
                       mount.stx_dev_minor == file.stx_dev_minor;

    errno = saved;
    return found;
}

MSHARE_API int statfs(const char *path, struct statfs *fs)
{
    if (sys_statfs(path, fs))
        return -1;
    if (fs->f_type == FUSE_SUPER_MAGIC && on_our_mount(AT_FDCWD, path, 0))
        fs->f_type = MSHARE_MAGIC;
    return 0;
}

MSHARE_API int fstatfs(int fd, struct statfs *fs)
{
    if (sys_fstatfs(fd, fs))
        return -1;
    if (fs->f_type == FUSE_SUPER_MAGIC && on_our_mount(fd, "", AT_EMPTY_PATH))
        fs->f_type = MSHARE_MAGIC;
    return 0;
}

/* On x86-64 both functions are one. */
MSHARE_API int statfs64(const char *path, struct statfs64 *fs) __attribute__((alias("statfs")));
MSHARE_API int fstatfs64(int fd, struct statfs64 *fs) __attribute__((alias("fstatfs")));
