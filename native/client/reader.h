/*
 * reader.h - an attachment whose region descriptor is open for reading only: the server fills
 * entries on its behalf.
 */
#ifndef MSHARE_READER_H
#define MSHARE_READER_H

#include "client/attachment.h"

/* Gives the attachment a slot that nobody else sees, or an empty one in place of the one it has.
 * 0 or -errno. Precondition: as attach_claim(). */
int reader_start(struct attachment *att);
void reader_end(struct attachment *att);
/* Arguments and figures of a message that makes `att` known to the server. Precondition: att->lock
 * held, or nobody knows of `att` yet. */
void reader_introduce(const struct attachment *att, struct msg *msg);
/* Puts the figures into a message. Precondition: as before. */
void reader_figures(const struct attachment *att, struct msg *msg);
/* Tells the server the figures, if it is there. Precondition: att->lock held. */
void reader_report(const struct attachment *att);
/* Asks for a fault, as fault_fill() would be. -EINPROGRESS: the answer will come, or a wake-up of
 * all when a server is back. -EAGAIN: try again. Precondition: att->lock held. */
int reader_ask(struct attachment *att, const struct fault *fault, bool present);
/* The server's answer. */
struct answer {
    struct fault fault; /* as fault_fill() would leave it */
    enum fault_verdict verdict;
    uint64_t ahead; /* the end of what may be mapped beyond it */
    uint64_t epoch;
};
/* Reads an answer. False: it is none. Precondition: att->lock held. */
bool reader_told(struct attachment *att, const struct msg *msg, struct answer *answer);
/* Once its pages are mapped: whether they still are what the region has there. If not, a change
 * came in between, and they are taken out again. Precondition: att->lock held. */
bool reader_confirm(const struct attachment *att, const struct answer *answer);

#endif
