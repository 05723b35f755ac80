/*
 * attach.h - attaching a region: its window is made, and its events are waited for.
 */
#ifndef MSHARE_ATTACH_H
#define MSHARE_ATTACH_H

#include "client/attachment.h"
#include "client/check.h"

/* As mshare_attach(), with the window's address in *base. 0 or -errno. -ENOTTY: `fd` is not
 * a region. Precondition: the table's lock held, which is let go of while the server is asked,
 * unless it is held twice; and fork_attached() was called. */
int attach(int fd, const struct attach_request *request, void **base);

/* For a forked child, which makes some of these parts anew. */

/* A slot of our own in the region. `start_time`: 0, if the server is about to put it there.
 * 0 or -errno. Precondition: both locks held, or nobody knows of `att` yet. */
int attach_claim(struct attachment *att, uint64_t start_time);

#endif
