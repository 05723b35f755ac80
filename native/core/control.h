/*
 * control.h - the client's end of a control connection. Functions return 0 or
 * -errno; they never block for longer than CONTROL_TIMEOUT_MS.
 */
#ifndef MSHARE_CONTROL_H
#define MSHARE_CONTROL_H

#include "core/protocol.h"
#include "msharefs.h"

#define CONTROL_TIMEOUT_MS 10000

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
int control_connect_path(const char *path);
int control_send(int sock, const struct msg *msg, const int *fds, unsigned count);
/* Sends a message if that is possible at once. EAGAIN: it is not. */
int control_post(int sock, const struct msg *msg);
/* Waits for one message; its descriptors `fds` (MSG_FDS of them, -1 where there is none)
 * belong to the caller; with an error there are none. EPIPE: the server is gone. ETIMEDOUT.
 * EMFILE: the message came, but its descriptors are lost, because the process has as many as
 * it may have. EPROTO: it is no message of ours, or has more than MSG_FDS descriptors. */
int control_recv(int sock, struct msg *msg, int fds[MSG_FDS], int timeout_ms);
/* Sends a request and waits for its reply. Returns the reply's result, or an error of
 * control_recv(); with an error `recv_fds` holds nothing to be closed. */
int control_call(int sock, struct msg *msg, const int *send_fds, unsigned count,
                 int recv_fds[MSG_FDS]);
/* Moves a descriptor out of the way of the program's own numbers. */
int control_hide_fd(int fd);

#endif
