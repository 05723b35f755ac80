/*
 * preload/mount.c - mount(2) of type "msharefs", which no kernel has: on a mount of ours it is
 * done already, so a program for the series need not know that it was `msharefs mount`.
 *
 * A mount that was answered here is taken back by umount(2), as the program expects, and ours
 * stays. The places are copied by fork(2), and exec(2) forgets them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include "msharefs.h"
#include "preload/mounts.h"
#include "preload/sys.h"

#define TYPE "msharefs"
/* What a mount may be asked for without a difference for regions. */
#define HARMLESS                                                                   \
    (MS_NOSUID | MS_NODEV | MS_SILENT | MS_NOATIME | MS_NODIRATIME | MS_RELATIME | \
     MS_STRICTATIME | MS_LAZYTIME)

/* The mounts answered here, by the number of the mount of ours: one in each place. */
#define PLACES 64
static _Atomic uint64_t answered[PLACES];

/* Puts `to` where `from` is. False: it is nowhere. */
static bool exchange(uint64_t from, uint64_t to)
{
    for (unsigned i = 0; i < PLACES; i++) {
        uint64_t expected = from;

        if (atomic_compare_exchange_strong(&answered[i], &expected, to))
            return true;
    }
    return false;
}

MSHARE_API int mount(const char *source, const char *target, const char *type, unsigned long flags,
                     const void *data)
{
    const bool wanted = type && !(flags & ~(unsigned long)HARMLESS);
    const uint64_t ours = wanted ? preload_mount_of_ours(target, 0) : 0;
    const char *options = data;

    if (!ours || strcmp(type, TYPE) || (options && *options))
        return (int)sys_syscall(SYS_mount, (long)source, (long)target, (long)type, (long)flags,
                                (long)data, 0);
    return exchange(0, ours) ? 0 : preload_answer(-ENOSPC);
}

MSHARE_API int umount2(const char *target, int flags)
{
    const int follow = flags & UMOUNT_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0;
    const uint64_t ours = flags & MNT_EXPIRE ? 0 : preload_mount_of_ours(target, follow);

    if (ours && exchange(ours, 0))
        return 0;
    return (int)sys_syscall(SYS_umount2, (long)target, flags, 0, 0, 0, 0);
}

MSHARE_API int umount(const char *target) { return umount2(target, 0); }
