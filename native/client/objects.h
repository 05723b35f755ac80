/*
 * objects.h - the files behind mappings that are not anonymous.
 */
#ifndef MSHARE_OBJECTS_H
#define MSHARE_OBJECTS_H

#include "client/attachment.h"

/* Prepares to map the object behind a permitted fault: sets fault->start, end and limit.
 * -EINPROGRESS: we have asked for it; view_wake() follows when it comes. -EAGAIN: try
 * again. -ENOENT: there is no such object. Precondition: att->lock held, inside an epoch. */
int object_find(struct attachment *att, struct fault *fault);
/* Whether we have the descriptor of an object. Precondition: att->lock held. */
bool object_held(struct attachment *att, uint32_t number);
/* Maps the block. Returns how many pages that made reachable, or -errno.
 * Precondition: att->lock held, inside the epoch of object_find(). */
int64_t object_map(struct attachment *att, const struct fault *fault);
/* Takes the server's answer; `fd` is ours now, or -errno. Precondition: att->lock held. */
void object_answer(struct attachment *att, uint32_t number, int fd);
/* Open questions will not be answered, because the connection is gone. The next server may have
 * what the last one had not.
 * Precondition: att->lock held. */
void objects_unask(struct attachment *att);
/* Asks again for what could not be had for a while. Returns when that is due, ms from now;
 * -1: nothing is. Precondition: in the shadow, att->lock held. */
int objects_tick(struct attachment *att);
/* For all attachments. Precondition: on the service thread, no lock held. */
int objects_tick_all(void);
/* Lets go of all descriptors. Precondition: att->lock held. */
void objects_drop(struct attachment *att);
/* The place that keeps the descriptor `fd` of an object, or NULL. Precondition: att->lock held. */
int *object_descriptor(struct attachment *att, int fd);

#endif
