/*
 * asked.h - questions to the server that threads wait for: one for each page. Internal to the
 * client library.
 */
#ifndef MSHARE_ASKED_H
#define MSHARE_ASKED_H

#include "client/attachment.h"

/* Asks, at once: `msg` goes with `kind` | the place as its seq, and `question` is what stays of it.
 * -EINPROGRESS: it is asked, or was already, or will be anew when a server is back; then all
 * threads are woken. -EAGAIN: there is no room for it now. Precondition: att->lock held. */
int asked_send(struct attachment *att, struct msg *msg, uint64_t kind, struct asked question);
/* The question that an answer with that `seq` is for, not open any more; NULL: there is none.
 * Precondition: as before. */
struct asked *asked_answered(struct attachment *att, uint64_t seq);
/* Open questions will not be answered, because the connection is gone. Precondition: as before. */
void asked_forget(struct attachment *att);

#endif
