/* See fuse_passthrough.h: messages to the kernel, completed. */
#define _GNU_SOURCE /* RTLD_NEXT */
#define FUSE_USE_VERSION 35
#include "fuse/fuse_passthrough.h"
#include "fuse/fuse_hook.h"

#include <dlfcn.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

/* The kernel's interface is frozen; Debian 12's header is that of 6.1, without these. */
#ifndef FUSE_PASSTHROUGH
#define FUSE_PASSTHROUGH (1ULL << 37)
#define FOPEN_PASSTHROUGH (1 << 7)
struct fuse_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)
#endif
#ifndef FUSE_DEV_IOC_MAGIC
#define FUSE_DEV_IOC_MAGIC 229
#endif

/* Field names differ with the header's age: `unused` and `padding` became max_stack_depth and
 * backing_id. */
#define MAX_STACK_DEPTH (offsetof(struct fuse_init_out, flags2) + sizeof(uint32_t))
#define BACKING_ID (offsetof(struct fuse_open_out, open_flags) + sizeof(uint32_t))
_Static_assert(MAX_STACK_DEPTH == 36 && sizeof(struct fuse_init_out) == 64,
               "fuse_init_out of protocol 7.36 and later");
_Static_assert(BACKING_ID == 12 && sizeof(struct fuse_open_out) == 16, "fuse_open_out");

static bool handshake_done;
static uint32_t opening; /* backing id for the answer that is being sent */

static uint32_t *at(void *message, size_t offset) { return (uint32_t *)((char *)message + offset); }

static void complete_init(struct iovec *body)
{
    struct fuse_init_out *out = body->iov_base;

    if (body->iov_len < sizeof(*out))
        return;
    out->flags |= FUSE_INIT_EXT;
    out->flags2 |= (uint32_t)(FUSE_PASSTHROUGH >> 32);
    *at(out, MAX_STACK_DEPTH) = 1; /* a backing file does not itself lie on a stacked file system */
}

/* Both answers end with a fuse_open_out; the one to CREATE has the entry before it. */
static void complete_open(struct iovec *body)
{
    struct fuse_open_out *out;

    if (body->iov_len < sizeof(*out))
        return;
    out = (struct fuse_open_out *)((char *)body->iov_base + body->iov_len - sizeof(*out));
    out->open_flags |= FOPEN_PASSTHROUGH;
    *at(out, BACKING_ID) = opening;
}

static ssize_t send_message(int fd, struct iovec *iov, int count, void *userdata)
{
    const struct fuse_out_header *header = iov[0].iov_base;

    (void)userdata;
    if (count == 2 && header->error == 0) {
        /* The kernel sends no other request before INIT is answered. */
        if (!handshake_done)
            complete_init(&iov[1]);
        else if (opening)
            complete_open(&iov[1]);
        handshake_done = true;
    }
    return writev(fd, iov, count);
}

static ssize_t receive_message(int fd, void *buffer, size_t size, void *userdata)
{
    (void)userdata;
    return read(fd, buffer, size);
}

int passthrough_request(void)
{
    static const struct fuse_custom_io io = {.writev = send_message, .read = receive_message};

    handshake_done = false;
    return fuse_session_custom_io(hook_session(), &io, hook_session_fd());
}

/* pyfuse3 answers through these two functions, and finds ours first. */
typedef int reply_open_fn(fuse_req_t, const struct fuse_file_info *);
typedef int reply_create_fn(fuse_req_t, const struct fuse_entry_param *,
                            const struct fuse_file_info *);

/* A question at each close(2) would only cost time. */
static struct fuse_file_info without_flush(const struct fuse_file_info *info)
{
    struct fuse_file_info given = *info;

    given.noflush = !(info->fh >> PASSTHROUGH_FLUSH & 1);
    return given;
}

HOOK_INTERPOSED int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *info)
{
    reply_open_fn *real = (reply_open_fn *)dlsym(RTLD_NEXT, "fuse_reply_open");
    const struct fuse_file_info given = without_flush(info);
    int err;

    opening = (uint32_t)(info->fh >> PASSTHROUGH_SHIFT);
    err = real(req, &given);
    opening = 0;
    return err;
}

HOOK_INTERPOSED int fuse_reply_create(fuse_req_t req, const struct fuse_entry_param *entry,
                                      const struct fuse_file_info *info)
{
    reply_create_fn *real = (reply_create_fn *)dlsym(RTLD_NEXT, "fuse_reply_create");
    const struct fuse_file_info given = without_flush(info);
    int err;

    opening = (uint32_t)(info->fh >> PASSTHROUGH_SHIFT);
    err = real(req, entry, &given);
    opening = 0;
    return err;
}

int passthrough_open(int fd)
{
    struct fuse_backing_map map = {.fd = fd};
    int id = ioctl(hook_session_fd(), FUSE_DEV_IOC_BACKING_OPEN, &map);

    return id < 0 ? -errno : id;
}

int passthrough_close(int id)
{
    uint32_t given = (uint32_t)id;

    return ioctl(hook_session_fd(), FUSE_DEV_IOC_BACKING_CLOSE, &given) ? -errno : 0;
}
