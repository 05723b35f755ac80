/*
 * preload/userfault.c - ioctl(2): a program's own userfaultfd over a window is EINVAL, as in the
 * series.
 *
 * Linux permits it in memory that is not watched. But the server could not have that watched
 * again then, and so change nothing of the region there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "client/attachments.h"
#include "msharefs.h"
#include "preload/range.h"
#include "preload/sys.h"

static int refuse_window(struct attachment *att, struct range range, void *arg)
{
    (void)range, (void)arg;
    return att ? -EINVAL : 0;
}

static int check(const struct uffdio_range *wanted)
{
    struct range range;
    int err;

    if (!preload_concerns((const void *)wanted->start, wanted->len, &range))
        return 0;
    attachments_lock();
    err = preload_parts(range, refuse_window, NULL);
    attachments_unlock();
    return err;
}

/* Whether it could be read: of a wrong address Linux says EFAULT. */
static bool fetch(struct uffdio_register *wanted, void *arg)
{
    const struct iovec from = {arg, sizeof *wanted}, to = {wanted, sizeof *wanted};

    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)sizeof *wanted;
}

/* Not variadic as in the header: an argument that the program does not pass is not used. */
MSHARE_API int preload_ioctl(int fd, unsigned long request, void *arg) __asm__("ioctl");

int preload_ioctl(int fd, unsigned long request, void *arg)
{
    struct uffdio_register wanted;
    int err = 0;

    if (request == UFFDIO_REGISTER && fetch(&wanted, arg))
        err = check(&wanted.range);
    return err ? preload_answer(err) : sys_ioctl(fd, request, arg);
}
