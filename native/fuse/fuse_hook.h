/*
 * The parts of FUSE that pyfuse3 leaves out: ioctl, fallocate and lseek requests, and libfuse's
 * messages.
 *
 * pyfuse3 gives libfuse a table of operations that has no entry for them, so the kernel gets ENOSYS
 * before any Python runs. This extension is loaded with RTLD_GLOBAL before pyfuse3; its
 * fuse_session_new() is therefore the one that pyfuse3 calls. It copies the table, fills the empty
 * entries with its own, and calls libfuse's function. If it is loaded in the wrong order, it is
 * silently not called at all: the importer must check hook_sessions().
 *
 * A process has one session, and one thread that reads it: pyfuse3 cannot do more. A request stays
 * valid until one hook_reply_*() is called with it, exactly once; then it is gone.
 */
#ifndef MSHAREFS_FUSE_HOOK_H
#define MSHAREFS_FUSE_HOOK_H

#include <stddef.h>
#include <stdint.h>

/* The build hides symbols; the dynamic linker must find these, before libfuse's. */
#define HOOK_INTERPOSED __attribute__((visibility("default")))

/* One FUSE request of a kind that pyfuse3 does not know. All values are the kernel's. */
struct hook_request {
    void *handle; /* fuse_req_t: for hook_reply_*() and hook_watch_interrupt() */
    uint64_t ino; /* FUSE inode number */
    uint64_t fh;  /* the answer of open() or opendir() */
    uint32_t pid; /* thread id of the caller; 0 if it is outside the mount's pid namespace */
    uint32_t uid; /* the caller's fsuid */
    uint32_t gid; /* the caller's fsgid */
};

/* How many sessions went through the hook: 1 after a successful pyfuse3.init(). */
int hook_sessions(void);
/* The last session; NULL if there is none. */
struct fuse_session *hook_session(void);
/* The descriptor of /dev/fuse of the last session; -1 if there is none. Not ours to close. */
int hook_session_fd(void);
/* Version of the libfuse that is loaded, as it prints it. Never NULL. */
const char *hook_libfuse_version(void);
/* From now on libfuse's messages go to hook_on_log() instead of stderr. */
void hook_take_log(void);

/* Each answers one request and returns 0 or -errno; ENOENT: the caller was killed and the kernel
 * forgot the request. */
int hook_reply_error(void *handle, int error);
int hook_reply_ioctl(void *handle, int result, const void *out, size_t size);
int hook_reply_lseek(void *handle, int64_t offset);

/* Call hook_on_interrupt(handle) when a signal arrives for the waiting caller, or at once if one
 * has. */
void hook_watch_interrupt(void *handle);

/* Implemented in Python; called on the thread that reads the session. None may call hook_reply_*()
 * for any request but its own, and hook_on_interrupt() must not reply at all: libfuse holds the
 * request's lock. The first three return whether pyfuse3 must await the operations' fsync() next,
 * in the task that reads. */
int hook_on_ioctl(const struct hook_request *request, uint32_t command, uint32_t flags,
                  const void *in, size_t in_size, size_t out_size);
int hook_on_fallocate(const struct hook_request *request, int mode, int64_t offset, int64_t length);
int hook_on_lseek(const struct hook_request *request, int64_t offset, int whence);
void hook_on_interrupt(void *handle);
void hook_on_log(int level, const char *text);

#endif
