/*
 * preload/fd.c - close(2), dup2(2) and the like: the descriptors of attachments do not
 * belong to the program. For the program they are not open, and if it wants one of their
 * numbers, they move. close(2) takes no lock here: it is called from signal handlers and
 * between vfork(2) and exec.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <unistd.h>

#include "client/attachments.h"
#include "client/descriptors.h"
#include "core/hidden.h"
#include "msharefs.h"
#include "preload/seek.h"
#include "preload/sys.h"

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2u
#endif

MSHARE_API int close(int fd)
{
    pthread_testcancel();
    if (hidden_is(fd))
        return preload_answer(-EBADF);
    preload_seek_forget((unsigned)fd, (unsigned)fd);
    return sys_close(fd);
}

MSHARE_API int close_range(unsigned first, unsigned last, int flags)
{
    int ours;

    preload_seek_forget(first, last);
    /* exec closes ours anyway. */
    if (flags & ~(int)CLOSE_RANGE_UNSHARE || first > last || hidden_next(first, last) < 0)
        return sys_close_range(first, last, flags);
    /* Closes none: the highest possible number is never open. */
    if (flags & (int)CLOSE_RANGE_UNSHARE && sys_close_range(UINT_MAX, UINT_MAX, flags))
        return -1;
    for (; (ours = hidden_next(first, last)) >= 0; first = (unsigned)ours + 1)
        if ((unsigned)ours > first && sys_close_range(first, (unsigned)ours - 1, 0))
            return -1;
    return first <= last ? sys_close_range(first, last, 0) : 0;
}

MSHARE_API void closefrom(int low) { close_range(low < 0 ? 0 : (unsigned)low, UINT_MAX, 0); }

/* Frees the number `fd` if it is one of ours. Returns 0 or -errno. */
static int give_up(int fd)
{
    int err = 0;

    preload_seek_forget((unsigned)fd, (unsigned)fd);
    /* A child of vfork(2) has descriptors of its own: the parent's stay as they are. */
    if (!hidden_is(fd) || !attachments_own())
        return 0;
    attachments_lock();
    if (hidden_is(fd))
        err = descriptors_give_up(fd);
    attachments_unlock();
    return err;
}

MSHARE_API int dup2(int from, int to)
{
    int err = hidden_is(from) ? -EBADF : give_up(to);

    return err ? preload_answer(err) : sys_dup2(from, to);
}

MSHARE_API int dup3(int from, int to, int flags)
{
    int err = hidden_is(from) ? -EBADF : give_up(to);

    return err ? preload_answer(err) : sys_dup3(from, to, flags);
}
