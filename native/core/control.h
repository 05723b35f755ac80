/*
 * control.h - the client's end of a control connection. Functions return 0 or
 * -errno; none but control_ask() and control_connect() waits for longer than its
 * deadline, or than CONTROL_TIMEOUT_MS where it takes none, however many signals come.
 */
#ifndef MSHARE_CONTROL_H
#define MSHARE_CONTROL_H

#include <stdint.h>

#include "core/protocol.h"
#include "msharefs.h"

#define CONTROL_TIMEOUT_MS 10000

/* A deadline, by the monotonic clock; after it a function returns -ETIMEDOUT. */
int64_t control_deadline(int timeout_ms);
/* The deadline of what must not wait at all. */
#define CONTROL_AT_ONCE INT64_C(0)

/* Connects to the server of the region open at `fd`. Returns a socket. ENOTTY:
 * not a region. */
int control_connect(int fd);
/* control_connect() in three steps. The first and the last never wait for a server that may hang;
 * the second is a question to the server of the file system that `fd` is on, whichever it is. */
struct control_ends {
    int ours, theirs;
    struct mshare_connect ticket;
};
int control_begin(struct control_ends *ends);
int control_ask(int fd, struct control_ends *ends);
/* `err` is the result of the second. Returns a socket; closes the ends that are not needed. */
int control_finish(struct control_ends *ends, int err);
/* Connects to a server's socket by path. */
int control_connect_path(const char *path, int64_t deadline);
int control_send(int sock, const struct msg *msg, const int *fds, unsigned count, int64_t deadline);
/* Waits for one message; its descriptors `fds` (MSG_FDS of them, -1 where there is none)
 * belong to the caller; with an error there are none. EPIPE: the server is gone. ETIMEDOUT.
 * EMFILE: the message came, but its descriptors are lost, because the process has as many as
 * it may have. EPROTO: it is no message of ours, or has more than MSG_FDS descriptors. */
int control_recv(int sock, struct msg *msg, int fds[MSG_FDS], int64_t deadline);
/* Sends a request and waits for its reply. Returns the reply's result, or an error of
 * control_recv(); with an error `recv_fds` holds nothing to be closed. */
int control_call(int sock, struct msg *msg, const int *send_fds, unsigned count,
                 int recv_fds[MSG_FDS]);
/* Moves a descriptor out of the way of the program's own numbers. */
int control_hide_fd(int fd);

#endif
