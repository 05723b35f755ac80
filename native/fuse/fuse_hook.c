/* See fuse_hook.h: fuse_session_new() interposed between pyfuse3 and libfuse. */
#define _GNU_SOURCE /* RTLD_NEXT */
#define FUSE_USE_VERSION 35
#include "fuse/fuse_hook.h"

#include <dlfcn.h>
#include <errno.h>
#include <fuse_log.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/linger.h"

/* Requests so close together are a burst; and so long everybody else may be kept waiting. */
#define BURST_NS 200000
#define TURN_NS 1000000

static struct fuse_session *session;
static int sessions;

/* pyfuse3 awaits the coroutine of its own handlers in the task that has read the request, which
 * costs nothing; a task for each request would cost more than most requests do. So a request of
 * ours borrows the handler of fsync, with a dummy request whose answer goes nowhere. */
static void (*borrowed)(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
static char nobody;
#define NOBODY ((fuse_req_t)&nobody)

static int look(void *input) { return poll(input, 1, 0); }

/* Whether there is a request now, or soon, unless somebody else wants the processor. */
static bool more(void)
{
    struct pollfd input = {fuse_session_fd(session), POLLIN, 0};

    return (look(&input) || linger(look, &input)) && input.revents == POLLIN;
}

/* Whether the last request was answered while it was read. */
static bool done;

/* Requests come in bursts: most callers make the next one when they have the answer. Going through
 * pyfuse3's loop for each takes longer than serving it, and so does waking up on another processor.
 * So when a request is done that came soon after the one before, we take the following ones right
 * here, for a moment. A request that is not done at once is the last one we take: pyfuse3 has to
 * await it. */
static void take_more(void)
{
    static bool taking;
    static uint64_t last;
    static struct fuse_buf buf; /* libfuse's memory, a megabyte, once */
    const uint64_t start = clock_ns(CLOCK_MONOTONIC);

    if (taking)
        return;
    taking = true;
    while (done && start - last < BURST_NS && clock_ns(CLOCK_MONOTONIC) - start < TURN_NS &&
           !fuse_session_exited(session) && more() && fuse_session_receive_buf(session, &buf) > 0) {
        done = false;
        fuse_session_process_buf(session, &buf);
    }
    last = clock_ns(CLOCK_MONOTONIC);
    taking = false;
}

static void await_if(int wanted, fuse_ino_t ino)
{
    struct fuse_file_info none = {0};

    done = !wanted;
    if (wanted)
        borrowed(NOBODY, ino, 0, &none);
    else
        take_more();
}

/* Its number, which headers before 6.1 lack. */
#define TMPFILE 51

typedef void process_fn(struct fuse_session *, const struct fuse_buf *);

/* open(2) with O_TMPFILE: as for a new file, only that it has no name, for which the kernel says
 * "/". libfuse does not know that request. */
HOOK_INTERPOSED void fuse_session_process_buf(struct fuse_session *from, const struct fuse_buf *buf)
{
    static process_fn *real;
    struct fuse_in_header *head = buf->mem;

    if (!real)
        real = (process_fn *)dlsym(RTLD_NEXT, "fuse_session_process_buf");
    if (!(buf->flags & FUSE_BUF_IS_FD) && buf->size >= sizeof *head && head->opcode == TMPFILE)
        head->opcode = FUSE_CREATE;
    real(from, buf);
}

typedef int receive_fn(struct fuse_session *, struct fuse_buf *);

/* A request is taken back if its caller is killed before we read it, and then there may be none any
 * more. The descriptor does not wait for the next one (msharefs/server/fuse.py), and what pyfuse3
 * knows of not having read any is EINTR. */
HOOK_INTERPOSED int fuse_session_receive_buf(struct fuse_session *from, struct fuse_buf *buf)
{
    static receive_fn *real;

    if (!real)
        real = (receive_fn *)dlsym(RTLD_NEXT, "fuse_session_receive_buf");
    const int received = real(from, buf);
    return received == -EAGAIN ? -EINTR : received;
}

typedef int reply_err_fn(fuse_req_t, int);

HOOK_INTERPOSED int fuse_reply_err(fuse_req_t req, int error)
{
    static reply_err_fn *real;

    if (req == NOBODY)
        return 0;
    if (!real)
        real = (reply_err_fn *)dlsym(RTLD_NEXT, "fuse_reply_err");
    return real(req, error);
}

static struct hook_request describe(fuse_req_t req, fuse_ino_t ino, const struct fuse_file_info *fi)
{
    const struct fuse_ctx *caller = fuse_req_ctx(req);

    return (struct hook_request){
        .handle = req,
        .ino = ino,
        .fh = fi ? fi->fh : 0,
        .pid = (uint32_t)caller->pid,
        .uid = caller->uid,
        .gid = caller->gid,
    };
}

static void on_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int command, void *argument,
                     struct fuse_file_info *fi, unsigned flags, const void *in, size_t in_size,
                     size_t out_size)
{
    struct hook_request request = describe(req, ino, fi);

    /* The caller's pointer is of no use: the kernel has copied as many bytes as the command's
     * encoding says, or has answered EFAULT. */
    (void)argument;
    await_if(hook_on_ioctl(&request, command, flags, in, in_size, out_size), ino);
}

static void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                         struct fuse_file_info *fi)
{
    struct hook_request request = describe(req, ino, fi);

    await_if(hook_on_fallocate(&request, mode, offset, length), ino);
}

static void on_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
                     struct fuse_file_info *fi)
{
    struct hook_request request = describe(req, ino, fi);

    await_if(hook_on_lseek(&request, offset, whence), ino);
}

/* libfuse copies the table too, so one static copy is enough. The caller was compiled with a table
 * of `size` bytes. */
static const struct fuse_lowlevel_ops *complete(const struct fuse_lowlevel_ops *given, size_t size)
{
    static struct fuse_lowlevel_ops ops;

    memset(&ops, 0, sizeof(ops));
    memcpy(&ops, given, size < sizeof(ops) ? size : sizeof(ops));
    borrowed = ops.fsync;
    /* A later pyfuse3 may have some of these handlers: then its own are the right ones. */
    if (!ops.ioctl)
        ops.ioctl = on_ioctl;
    if (!ops.fallocate)
        ops.fallocate = on_fallocate;
    if (!ops.lseek)
        ops.lseek = on_lseek;
    return &ops;
}

static struct fuse_session *remember(struct fuse_session *made)
{
    if (made) {
        session = made;
        sessions++;
    }
    return made;
}

/* The asm labels give our functions libfuse's names without clashing with the prototypes and macros
 * that differ from one version of its header to the next. */
typedef struct fuse_session *new_fn(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
                                    void *);
HOOK_INTERPOSED new_fn hook_session_new __asm__("fuse_session_new");

struct fuse_session *hook_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *ops,
                                      size_t size, void *userdata)
{
    new_fn *real = (new_fn *)dlsym(RTLD_NEXT, "fuse_session_new");

    if (!real) {
        errno = ENOSYS;
        return NULL;
    }
    return remember(real(args, complete(ops, size), sizeof(*ops), userdata));
}

/* From libfuse 3.17 on the header turns fuse_session_new() into a call of this one. */
typedef struct fuse_session *new_versioned_fn(struct fuse_args *, const struct fuse_lowlevel_ops *,
                                              size_t, void *, void *);
HOOK_INTERPOSED new_versioned_fn hook_session_new_versioned __asm__("fuse_session_new_versioned");

struct fuse_session *hook_session_new_versioned(struct fuse_args *args,
                                                const struct fuse_lowlevel_ops *ops, size_t size,
                                                void *version, void *userdata)
{
    new_versioned_fn *real = (new_versioned_fn *)dlsym(RTLD_NEXT, "fuse_session_new_versioned");

    if (!real) {
        errno = ENOSYS;
        return NULL;
    }
    return remember(real(args, complete(ops, size), sizeof(*ops), version, userdata));
}

int hook_sessions(void) { return sessions; }

struct fuse_session *hook_session(void) { return session; }

int hook_session_fd(void) { return session ? fuse_session_fd(session) : -1; }

const char *hook_libfuse_version(void) { return fuse_pkgversion(); }

static void on_log(enum fuse_log_level level, const char *format, va_list arguments)
{
    char text[1024]; /* a message of libfuse is one line; a longer one is cut */

    vsnprintf(text, sizeof(text), format, arguments);
    hook_on_log(level, text);
}

void hook_take_log(void) { fuse_set_log_func(on_log); }

int hook_reply_error(void *handle, int error) { return fuse_reply_err(handle, error); }

int hook_reply_ioctl(void *handle, int result, const void *out, size_t size)
{
    return fuse_reply_ioctl(handle, result, out, size);
}

int hook_reply_lseek(void *handle, int64_t offset) { return fuse_reply_lseek(handle, offset); }

static void on_interrupt(fuse_req_t req, void *data)
{
    (void)data;
    hook_on_interrupt(req);
}

void hook_watch_interrupt(void *handle) { fuse_req_interrupt_func(handle, on_interrupt, NULL); }
