/*
 * preload/seek.c - lseek(2): ESPIPE on a region, as in the series. FUSE can answer so only
 * for files that no plain mmap(2) can map, so it is done here, for the regions of the mount
 * that `msharefs run` chose.
 *
 * We look only once at a descriptor that is not a region's, since programs call lseek(2)
 * often. A number that was closed behind our back (fclose(3)) may become a region's later,
 * which then seeks as it does without this library.
 */
#define _GNU_SOURCE
#include "preload/seek.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "msharefs.h"
#include "preload/sys.h"

/* Higher descriptors are looked at each time. */
#define FDS 65536u
#define INFO_INO 2 /* mshare_info, which seeks; msharefs/server/tree.py */

static _Atomic uint64_t others[FDS / 64]; /* one bit for each descriptor: no region */

static bool known_other(unsigned fd)
{
    return fd < FDS &&
           atomic_load_explicit(&others[fd / 64], memory_order_relaxed) & 1ull << fd % 64;
}

void preload_seek_forget(unsigned first, unsigned last)
{
    for (unsigned fd = first; fd < FDS && fd <= last; fd++)
        if (!atomic_load_explicit(&others[fd / 64], memory_order_relaxed))
            fd |= 63; /* none in this word */
        else if (known_other(fd))
            atomic_fetch_and(&others[fd / 64], ~(1ull << fd % 64));
}

/* Without asking any server. */
static bool is_region(int fd)
{
    const char *where = getenv("MSHAREFS_MOUNT");
    struct statx file, mount;

    return where && !statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &file) &&
           S_ISREG(file.stx_mode) && file.stx_ino != INFO_INO && !file.stx_dev_major &&
           !statx(AT_FDCWD, where, AT_STATX_DONT_SYNC, 0, &mount) &&
           mount.stx_dev_major == file.stx_dev_major && mount.stx_dev_minor == file.stx_dev_minor;
}

MSHARE_API off_t lseek(int fd, off_t offset, int whence)
{
    const off_t at = sys_lseek(fd, offset, whence);
    const int saved = errno;

    if (at < 0 || known_other((unsigned)fd))
        return at;
    if (is_region(fd))
        return preload_answer(-ESPIPE);
    if ((unsigned)fd < FDS)
        atomic_fetch_or(&others[fd / 64], 1ull << fd % 64);
    errno = saved;
    return at;
}

/* With a 64-bit off_t both functions are one. */
MSHARE_API off_t lseek64(int fd, off_t offset, int whence) __attribute__((alias("lseek")));
