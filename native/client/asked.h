/*
 * asked.h - questions to the server that threads wait for: one for each page. Internal to the
 * client library.
 */
#ifndef MSHARE_ASKED_H
#define MSHARE_ASKED_H

#include "client/attachment.h"

/* The place for a question about the page at `offset`, or the open one about it. NULL: there are
 * too many. Precondition: att->lock held. */
struct asked *asked_place(struct attachment *att, uint64_t offset);
/* The question that an answer with that `seq` is for, not open any more; NULL: there is none.
 * Precondition: as before. */
struct asked *asked_answered(struct attachment *att, uint64_t seq);
/* Open questions will not be answered, because the connection is gone. Precondition: as before. */
void asked_forget(struct attachment *att);

#endif
