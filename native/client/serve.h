/*
 * serve.h - what is done with faults and with messages of the server, whoever has read them: the
 * service thread (service.c) or a shadow (tend.c).
 */
#ifndef MSHARE_SERVE_H
#define MSHARE_SERVE_H

#include <linux/userfaultfd.h>
#include <sys/types.h>

#include "client/attachment.h"

/* How many events of a userfaultfd are read at once. */
#define SERVE_EVENTS 16

/* In a child of fork(2), before its first fault: those of its parent say nothing of its pages.
 * Precondition: as serve_faults(). */
void serve_anew(struct attachment *att);
/* Answers the faults among `got` bytes of events. Precondition: att->lock held. */
void serve_faults(struct attachment *att, const struct uffd_msg *msgs, ssize_t got);
/* Reads one message of the server, and does what it asks for. 0, or -errno: the connection is of no
 * use any more. Precondition: att->lock held, and there is a connection. */
int serve_server(struct attachment *att);
/* Makes the attachment known to a server that is back, over `sock`, and shows it the host mm, which
 * proves the right to be its client. `program`: a pidfd of the program, from a shadow; otherwise
 * -1. 0 or -errno. Precondition: att->lock held. */
int serve_rejoin(struct attachment *att, int sock, int program);
/* After that, when `sock` is the connection. Precondition: the same. */
void serve_rejoined(struct attachment *att);

#endif
