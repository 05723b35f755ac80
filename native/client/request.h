/*
 * request.h - what the program asks its shadow for, without a descriptor and without the right
 * to send it a signal: it touches a page, the bell, whose faults the shadow takes.
 */
#ifndef MSHARE_REQUEST_H
#define MSHARE_REQUEST_H

#include "client/attachment.h"

/* Asks, and waits for the result. -ESRCH: there is no shadow.
 * Precondition: both locks held, which the shadow then works under. */
int request(struct attachment *att, enum request_op op, uint64_t arg, uint64_t end);

/* For the shadow. */

/* Makes the bell, a userfaultfd; its address is att->shadow.bell. 0 or -errno. */
int request_listen(struct attachment *att);
/* Does what was asked for, if anything was, by `serve`, and lets the program go on. */
void request_answer(struct attachment *att,
                    int (*serve)(struct attachment *att, const struct request *request));

#endif
