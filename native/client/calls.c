/*
 * calls.c - verbs on a region, for all attached processes at once. Each is an ioctl of ours, and
 * the server does the work; it need not be attached here.
 */
#define _GNU_SOURCE
#include "client/calls.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "core/layout.h"

int mshare_advise(int fd, off_t offset, size_t size, int advice)
{
    struct mshare_advise range = {
        .region_offset = (uint64_t)offset, .size = size, .advice = (uint32_t)advice};

    return ioctl(fd, MSHAREFS_ADVISE, &range);
}

static int call(int fd, unsigned long command, off_t offset, size_t size, uint32_t flags)
{
    struct mshare_range range = {.region_offset = (uint64_t)offset, .size = size, .flags = flags};

    return ioctl(fd, command, &range);
}

int mshare_lock(int fd, off_t offset, size_t size, unsigned int flags)
{
    return call(fd, MSHAREFS_LOCK, offset, size, flags);
}

int mshare_unlock(int fd, off_t offset, size_t size)
{
    return call(fd, MSHAREFS_UNLOCK, offset, size, 0);
}

int mshare_sync(int fd, off_t offset, size_t size, int flags)
{
    return call(fd, MSHAREFS_SYNC, offset, size, (uint32_t)flags);
}

int mshare_seal(int fd, off_t offset, size_t size)
{
    return call(fd, MSHAREFS_SEAL, offset, size, 0);
}

int calls_set_nodes(struct mshare_mbind *range, const unsigned long *nodemask,
                    unsigned long maxnode)
{
    /* As in mbind(2): it counts one node more than there are, and 0 is none but with NULL. */
    range->maxnode = nodemask ? maxnode - 1 : 0;
    if (nodemask && range->maxnode > MSHARE_NODES)
        range->maxnode = maxnode ? MSHARE_NODES : UINT64_MAX - 1;
    range->maxnode += nodemask != NULL;
    for (unsigned long node = 0; nodemask && node + 1 < maxnode; node++) {
        const unsigned long bit = nodemask[node / 64] >> node % 64 & 1;

        if (bit && node >= MSHARE_NODES)
            return -EINVAL;
        if (bit)
            range->nodemask[node / 64] |= bit << node % 64;
    }
    return 0;
}

int mshare_mbind(int fd, off_t offset, size_t size, int mode, const unsigned long *nodemask,
                 unsigned long maxnode, unsigned int flags)
{
    struct mshare_mbind range = {
        .region_offset = (uint64_t)offset, .size = size, .mode = (uint32_t)mode, .flags = flags};
    const int err = calls_set_nodes(&range, nodemask, maxnode);

    if (err) {
        errno = -err;
        return -1;
    }
    return ioctl(fd, MSHAREFS_MBIND, &range);
}

int mshare_query(int fd, off_t offset, size_t size, unsigned char *vec)
{
    const uint64_t most = MSHARE_QUERY_PAGES * PAGE_SIZE;
    struct mshare_query query = {.region_offset = (uint64_t)offset, .size = size};

    if (size <= most || size + PAGE_SIZE < size) { /* also if nothing is to be told: errors are */
        query.size = size <= most ? size : UINT64_MAX;
        if (ioctl(fd, MSHAREFS_QUERY, &query))
            return -1;
        memcpy(vec, query.vec, (size + PAGE_SIZE - 1) / PAGE_SIZE);
        return 0;
    }
    for (uint64_t done = 0; done < size; done += query.size) {
        query.region_offset = (uint64_t)offset + done;
        query.size = size - done < most ? size - done : most;
        if (ioctl(fd, MSHAREFS_QUERY, &query))
            return -1;
        memcpy(vec + done / PAGE_SIZE, query.vec, (query.size + PAGE_SIZE - 1) / PAGE_SIZE);
    }
    return 0;
}
