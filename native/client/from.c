/*
 * from.c - private memory of the program becomes memory of a region; see from.h.
 *
 *   region   ......        NNNNNN        NNNNNN        RRRRRR      N: PROT_NONE, R: as asked for
 *   .mem     ......        ......        cccccc        cccccc      c: the contents
 *   range    pppppp        pppppp        pppppp        wwwwww      p: private, w: the window
 *                   create        copy         protect, attach
 *
 * Nobody who has the region attached can see memory that is filled in part. The window takes the
 * place of the private memory in one step, with the same bytes (attach.c).
 */
#define _GNU_SOURCE
#include "client/from.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/control.h"
#include "core/fd.h"
#include "core/layout.h"
#include "core/procmap.h"
#include "core/uffd.h"
#include "msharefs.h"

/* What is copied at once; where that is all zero, there is no page in the region either. */
#define CHUNK UINT64_C(65536)

/* Linux 6.4 */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif

/* The mapping of the range that has the address `at`. -ENOMEM: there is none. */
static int mapping_at(const struct from *from, uint64_t at, struct procmap_query *map)
{
    const int err = procmap_covering(from->maps, at, map);

    return err == -ENOENT ? -ENOMEM : err;
}

/* Private memory from end to end that can be read, of ordinary pages. */
static int check_range(const struct from *from)
{
    struct procmap_query map;

    for (uint64_t at = from->addr; at < from->addr + from->size; at = map.end) {
        const int err = mapping_at(from, at, &map);

        if (err)
            return err;
        if (map.vma_flags & PROCMAP_SHARED || map.vma_page_size != PAGE_SIZE)
            return -EINVAL;
        if (!(map.vma_flags & PROCMAP_READABLE))
            return -EACCES;
    }
    return 0;
}

static int check(const struct from *from, int sock)
{
    struct msg msg = {.op = MSG_STAT};
    struct mshare_stat region;
    const int err = control_call(sock, &msg, NULL, 0, NULL);

    if (err)
        return err;
    memcpy(&region, msg.text, sizeof region);
    if (!region.size || from->offset >= region.size || from->size > region.size - from->offset ||
        !from->size || (from->offset | from->size | from->addr) % region.quantum)
        return -EINVAL;
    return from->addr > HOST_END - from->size ? -ENOMEM : check_range(from);
}

/* Has threads that store into the anonymous memory of the range wait. */
static int hold_stores(struct from *from, int device)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED,
    };
    struct procmap_query map;
    int err = uffd_new(device);

    if (err < 0)
        return err;
    from->store_uffd = control_hide_fd(err);
    if (ioctl(from->store_uffd, UFFDIO_API, &api))
        return -ENOSYS;
    for (uint64_t at = from->addr, end; at < from->addr + from->size; at = end) {
        err = mapping_at(from, at, &map);
        if (err)
            return err;
        end = map.end < from->addr + from->size ? map.end : from->addr + from->size;
        struct uffdio_register watch = {{at, end - at}, UFFDIO_REGISTER_MODE_WP, 0};
        struct uffdio_writeprotect stop = {{at, end - at}, UFFDIO_WRITEPROTECT_MODE_WP};

        if (!map.inode && (ioctl(from->store_uffd, UFFDIO_REGISTER, &watch) ||
                           ioctl(from->store_uffd, UFFDIO_WRITEPROTECT, &stop)))
            return -errno;
    }
    return 0;
}

static bool all_zero(const uint8_t *bytes, uint64_t size)
{
    return !bytes[0] && !memcmp(bytes, bytes + 1, size - 1);
}

/* Fills the pages of the region, which nobody can touch yet. */
static int fill(const struct from *from, int mem_fd)
{
    uint8_t *buffer = malloc(CHUNK);
    int err = buffer ? 0 : -ENOMEM;

    for (uint64_t done = 0, size; done < from->size && !err; done += size) {
        size = from->size - done < CHUNK ? from->size - done : CHUNK;
        struct iovec to = {buffer, size}, source = {(void *)(from->addr + done), size};
        const ssize_t got = process_vm_readv(getpid(), &to, 1, &source, 1, 0);

        if (got != (ssize_t)size)
            err = got < 0 ? -errno : -EFAULT; /* beyond the end of a file, for one */
        else if (!all_zero(buffer, size) &&
                 pwrite(mem_fd, buffer, size, (off_t)(from->offset + done)) != (ssize_t)size)
            err = -ENOSPC;
    }
    free(buffer);
    return err;
}

/* Makes the entries of the pages that were filled: nobody needs a fault for them. What fails here
 * is done by a fault. */
static void populate(const struct from *from, int mem_fd)
{
    const off_t limit = (off_t)(from->offset + from->size);
    off_t start, end;

    for (start = (off_t)from->offset;; start = end) {
        start = lseek(mem_fd, start, SEEK_DATA);
        end = start < 0 ? -1 : lseek(mem_fd, start, SEEK_HOLE);
        if (start < 0 || start >= limit || end < 0)
            return;
        end = end < limit ? end : limit;
        mshare_advise(from->fd, start, (size_t)(end - start), MADV_POPULATE_READ);
    }
}

static int make(struct from *from, int fds[MSG_FDS])
{
    const int new = MAP_SHARED | MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_ANONYMOUS;
    int err;

    if (mshare_map(from->fd, (off_t)from->offset, from->size, PROT_NONE, new, -1, 0))
        return -errno;
    from->created = true;
    err = hold_stores(from, fds[2]);
    if (!err)
        err = fill(from, fds[1]);
    if (!err && mshare_protect(from->fd, (off_t)from->offset, from->size, from->prot))
        err = -errno;
    if (!err && from->prot & PROT_READ)
        populate(from, fds[1]);
    return err;
}

int from_copy(struct from *from)
{
    struct msg ask = {.op = MSG_ATTACH, .arg = {PROT_READ | PROT_WRITE}};
    int fds[MSG_FDS] = {-1, -1, -1}, sock;
    const int mode = fcntl(from->fd, F_GETFL);
    int err = mode < 0 ? -errno : 0;

    from->maps = from->store_uffd = -1;
    from->created = false;
    if (err)
        return err;
    sock = control_connect(from->fd);
    if (sock < 0)
        return sock;
    from->maps = procmap_open("/proc/thread-self/maps");
    err = from->maps < 0 ? from->maps : (mode & O_ACCMODE) != O_RDWR ? -EACCES : check(from, sock);
    if (!err)
        err = control_call(sock, &ask, NULL, 0, fds);
    if (!err && ask.arg[2] & ATTACH_READER)
        err = -EACCES;
    if (!err)
        err = make(from, fds);
    for (unsigned i = 0; i < MSG_FDS; i++)
        fd_close(fds[i]);
    fd_close(sock);
    return err;
}

void from_end(struct from *from, bool failed)
{
    if (failed && from->created)
        mshare_unmap(from->fd, (off_t)from->offset, from->size);
    fd_close(from->store_uffd);
    fd_close(from->maps);
}
