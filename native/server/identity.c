/* identity.c - see identity.h. */
#define _GNU_SOURCE
#include "server/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200 /* Linux 6.5: a handle that names a file but need not open it */
#endif
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000u /* Linux 6.8 */
#endif

/* What Linux makes up for a file system without handles of its own: 64 bits of the inode number,
 * and the generation, which is 0 in a file system that does not count it. */
#define FILEID_INO64_GEN 0x81

static void read_handle(int fd, struct identity *found)
{
    struct {
        struct file_handle head;
        unsigned char bytes[IDENTITY_HANDLE];
    } handle = {.head.handle_bytes = IDENTITY_HANDLE};
    uint32_t generation = 1;
    int mount;

    if (name_to_handle_at(fd, "", &handle.head, &mount, AT_EMPTY_PATH | AT_HANDLE_FID))
        return;
    if (handle.head.handle_type == FILEID_INO64_GEN && handle.head.handle_bytes >= 12)
        memcpy(&generation, handle.head.f_handle + 8, sizeof generation);
    found->handle_type = handle.head.handle_type;
    found->handle_bytes = handle.head.handle_bytes;
    found->has_generation = generation != 0;
    memcpy(found->handle, handle.head.f_handle, handle.head.handle_bytes);
}

int identity_read(int fd, struct identity *found)
{
    struct statx status;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID_UNIQUE,
              &status))
        return -errno;
    *found = (struct identity){
        .device = makedev(status.stx_dev_major, status.stx_dev_minor),
        .inode = status.stx_ino,
        .mode = status.stx_mode,
        .uid = status.stx_uid,
    };
    if (status.stx_mask & STATX_MNT_ID_UNIQUE)
        found->mount = status.stx_mnt_id;
    if (status.stx_mask & STATX_BTIME)
        found->born = status.stx_btime.tv_sec * 1000000000 + (int64_t)status.stx_btime.tv_nsec;
    read_handle(fd, found);
    return 0;
}

int identity_mount(int fd)
{
    struct file_handle nothing = {0};
    int mount = 0;

    if (name_to_handle_at(fd, "", &nothing, &mount, AT_EMPTY_PATH | AT_HANDLE_FID) &&
        errno != EOVERFLOW) /* there is no room for a handle, which nobody wants */
        return -errno;
    return mount;
}

int identity_find(const char *path)
{
    struct open_how how = {
        .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
        .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    long fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);

    return fd < 0 ? -errno : (int)fd;
}

int identity_open(int fd, int type, const unsigned char *bytes, uint32_t count)
{
    struct {
        struct file_handle head;
        unsigned char bytes[IDENTITY_HANDLE];
    } handle = {.head.handle_bytes = count, .head.handle_type = type};
    int found;

    if (count > IDENTITY_HANDLE)
        return -EINVAL;
    memcpy(handle.head.f_handle, bytes, count);
    found = open_by_handle_at(fd, &handle.head, O_RDONLY | O_CLOEXEC);
    return found < 0 ? -errno : found;
}
