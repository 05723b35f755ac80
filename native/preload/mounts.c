/*
 * preload/mounts.c - which files are asked whether they are regions.
 *
 * A question to a FUSE file goes to its server, and the server of another file system may not
 * know our question, or hang. So we first ask the kernel about the file's mount: statmount(2)
 * knows all mounts of our mount namespace, even new ones and bind mounts. Files whose mount it
 * does not know (an unmounted one, one of another namespace, or none: memfd_create(2)) are asked
 * if they are on FUSE.
 */
#define _GNU_SOURCE
#include "preload/mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000u
#endif
#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif
#ifndef SYS_statmount
#define SYS_statmount 457
#endif

#define SUBTYPE "msharefs" /* of the type "fuse.msharefs" */

/* Newer than the C library's headers: linux/mount.h, with the names that it has there. */
#define STATMOUNT_SB_BASIC 0x1u
#define STATMOUNT_FS_SUBTYPE 0x100u

struct mnt_id_req {
    uint32_t size, spare;
    uint64_t mnt_id, param;
};

struct statmount {
    uint32_t size, mnt_opts;
    uint64_t mask;
    uint32_t sb_dev_major, sb_dev_minor;
    uint64_t sb_magic;
    uint64_t other[11];
    uint32_t fs_subtype; /* where it begins in `str` */
    uint32_t more[97];
    char str[256];
};

_Static_assert(offsetof(struct statmount, fs_subtype) == 120, "as linux/mount.h has it");
_Static_assert(offsetof(struct statmount, str) == 512, "as linux/mount.h has it");

/* Mounts without regions, by their numbers, which are never used twice; one in each
 * place. */
#define MOUNTS 64
static _Atomic uint64_t other_mounts[MOUNTS];

enum mount_kind { MOUNT_OURS, MOUNT_OTHER, MOUNT_UNKNOWN };

static enum mount_kind kind_of(uint64_t mount)
{
    struct mnt_id_req request = {.size = sizeof request,
                                 .mnt_id = mount,
                                 .param = STATMOUNT_SB_BASIC | STATMOUNT_FS_SUBTYPE};
    struct statmount found = {.mask = 0};

    if (syscall(SYS_statmount, &request, &found, sizeof found, 0) ||
        !(found.mask & STATMOUNT_SB_BASIC))
        return MOUNT_UNKNOWN;
    return found.sb_magic == FUSE_SUPER_MAGIC && found.mask & STATMOUNT_FS_SUBTYPE &&
                   !strncmp(found.str + found.fs_subtype, SUBTYPE, sizeof SUBTYPE)
               ? MOUNT_OURS
               : MOUNT_OTHER;
}

static enum mount_kind kind_of_file(int fd)
{
    struct statfs fs;

    if (fstatfs(fd, &fs))
        return MOUNT_OTHER;
    return fs.f_type == FUSE_SUPER_MAGIC ? MOUNT_UNKNOWN : MOUNT_OTHER;
}

static bool look(int fd)
{
    enum mount_kind kind = MOUNT_UNKNOWN;
    struct statx file;

    /* DONT_SYNC: without asking the server of the mount, whatever it is. */
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID_UNIQUE, &file))
        return false;
    if (file.stx_dev_major) /* on a device, so not FUSE */
        return false;
    const bool known = file.stx_mask & STATX_MNT_ID_UNIQUE;
    const uint64_t mount = known ? file.stx_mnt_id : 0;
    _Atomic uint64_t *other = &other_mounts[mount % MOUNTS];

    if (known && atomic_load_explicit(other, memory_order_relaxed) == mount)
        return false;
    if (known)
        kind = kind_of(mount);
    if (kind == MOUNT_UNKNOWN)
        kind = kind_of_file(fd);
    if (known && kind == MOUNT_OTHER)
        atomic_store_explicit(other, mount, memory_order_relaxed);
    return kind != MOUNT_OTHER;
}

bool preload_may_be_region(int fd)
{
    const int saved = errno;
    const bool may_be = look(fd);

    errno = saved;
    return may_be;
}

bool preload_in_memory(int fd)
{
    struct mnt_id_req request = {.size = sizeof request, .param = STATMOUNT_SB_BASIC};
    struct statmount found = {.mask = 0};
    struct statx file;

    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID_UNIQUE, &file) ||
        !(file.stx_mask & STATX_MNT_ID_UNIQUE))
        return false;
    request.mnt_id = file.stx_mnt_id;
    return !syscall(SYS_statmount, &request, &found, sizeof found, 0) &&
           found.mask & STATMOUNT_SB_BASIC && found.sb_magic == TMPFS_MAGIC;
}

uint64_t preload_mount_of_ours(const char *path, int flags)
{
    const int ask = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, saved = errno;
    struct statx file;
    const bool ours = !statx(AT_FDCWD, path, flags | ask, STATX_MNT_ID_UNIQUE, &file) &&
                      file.stx_attributes & STATX_ATTR_MOUNT_ROOT &&
                      file.stx_mask & STATX_MNT_ID_UNIQUE && kind_of(file.stx_mnt_id) == MOUNT_OURS;

    errno = saved;
    return ours ? file.stx_mnt_id : 0;
}
