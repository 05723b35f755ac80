/*
 * detach.c - the end of attachments; see detach.h.
 *
 *   window gone; slot given back, by the server if there is one; descriptors closed. Where there
 *   is a shadow, the last two are its part, and its end
 */
#define _GNU_SOURCE
#include "client/detach.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/attachments.h"
#include "client/birth.h"
#include "client/budget_set.h"
#include "client/objects.h"
#include "client/own.h"
#include "client/private.h"
#include "client/reader.h"
#include "client/request.h"
#include "client/spare.h"
#include "client/watch.h"
#include "core/control.h"
#include "core/fd.h"
#include "core/slots.h"

/* Gives the slot back without waiting for the server. A reader's is the server's. */
static void release(struct attachment *att)
{
    const struct msg msg = {.op = MSG_DETACH};

    if (!att->reader)
        slot_release(&att->mm, att->slot, att->claim);
    else if (att->ctl >= 0)
        control_send(att->ctl, &msg, NULL, 0, CONTROL_AT_ONCE);
}

void detach_forget(struct attachment *att)
{
    att->mm.fd = att->mem_fd = att->dev_fd = att->uffd = att->moved_uffd = att->ctl = -1;
    for (unsigned i = 0; i < OBJECTS_MAX; i++)
        if (att->objects[i].state != OBJECT_NONE) /* a child copies the page that it writes to */
            att->objects[i] = (struct object){0};
}

/* Gives back all but memory. */
static void let_go(struct attachment *att, bool claimed)
{
    if (claimed)
        release(att);
    objects_drop(att);
    budget_end(att);
    fd_close(att->uffd);
    fd_close(att->moved_uffd);
    fd_close(att->ctl);
    fd_close(att->mem_fd);
    fd_close(att->dev_fd);
}

void detach_unserved(struct attachment *att, bool claimed)
{
    let_go(att, claimed);
    fd_close(att->mm.fd);
    detach_forget(att);
    birth_undo(att);
    att->served = BY_NOBODY;
}

void detach_drop(struct attachment *att, bool claimed)
{
    let_go(att, claimed);
    spare_free(att->spare);
    att->spare = NULL;
    reader_end(att);
    free(att->linked);
    att->linked = NULL;
    pieces_free(&att->pieces);
    unshared_free(&att->unshared);
    mm_close(&att->mm);
    birth_undo(att);
    att->live = false;
}

/* The server takes the slot back and keeps its counts; without one that answers we do it. The
 * program waits that long for one that is stopped. */
#define GOODBYE_MS 1000

void detach_goodbye(struct attachment *att)
{
    /* Replies carry the number of their request; a reply to the service thread, with number
     * 0, may still be on its way. */
    struct msg msg = {.op = MSG_DETACH, .seq = 1}, reply;
    int fds[MSG_FDS];
    const int64_t deadline = control_deadline(GOODBYE_MS);
    if (att->reader)
        reader_figures(att, &msg);
    int err = att->ctl < 0 ? -EPIPE : control_send(att->ctl, &msg, NULL, 0, deadline);

    do {
        err = err ? err : control_recv(att->ctl, &reply, fds, deadline);
        for (unsigned i = 0; !err && i < MSG_FDS; i++)
            fd_close(fds[i]); /* of an object that a thread waited for */
        if (err == -EMFILE)   /* such a descriptor was lost */
            err = 0;
    } while (!err && (reply.op != MSG_REPLY || reply.seq != msg.seq));
    /* The server may have done so after all, only too late. */
    if (err)
        release(att);
}

void detach_end(struct attachment *att)
{
    if (has_shadow(att)) {
        const int err = request(att, REQUEST_END, 0, 0);

        detach_forget(att);
        if (err && attachments_own()) /* it was killed */
            release(att);
    } else if (att->served == BY_THREAD &&
               attachments_own()) { /* a child of a bare clone(2) has copies, of epoll, too */
        watch_remove(att);
        detach_goodbye(att);
    }
    detach_drop(att, false);
}

static bool covers(const struct attachment *att, uint64_t start, uint64_t end)
{
    return start <= (uintptr_t)att->base && attachment_end(att) <= end;
}

/* Whether [start, end) may take what it covers of the window: all, or a part of adopted memory or
 * of a window that the program changes for itself, which has `next` after that. */
static int check_replaced(struct attachment *att, uint64_t start, uint64_t end,
                          struct unshared *next)
{
    int err;

    if (att->sealed)
        return -EPERM;
    if (att->private && !covers(att, start, end))
        return private_cut(att, start, end, next);
    if (!is_adopted(att))
        return covers(att, start, end) ? 0 : -EINVAL;
    attachment_lock(att);
    err = pieces_reserve(&att->pieces);
    attachment_unlock(att);
    return err;
}

/* Whether there is nothing of the window there any more. */
static bool gone(const struct attachment *att, uint64_t start, uint64_t end)
{
    const uint64_t first = (uintptr_t)att->base, last = attachment_end(att);

    return private_gone(att, start > first ? start : first, end < last ? end : last);
}

/* It is taken. Whether anything is left. */
static bool take(struct attachment *att, struct unshared *next, uint64_t start, uint64_t end)
{
    if (next->list)
        return !private_take(att, next);
    if (is_adopted(att))
        pieces_cut(&att->pieces, start, end);
    return is_adopted(att) && att->pieces.count;
}

int detach_replace(uint64_t start, uint64_t end, int (*change)(void *), void *arg)
{
    struct attachment *taken[ATTACHMENTS_MAX];
    struct unshared next[ATTACHMENTS_MAX];
    unsigned count = 0;
    int err = 0;

    for (unsigned i = 0; i < attachments_used && !err; i++)
        if (attachment_overlaps(&attachments[i], start, end) &&
            !gone(&attachments[i], start, end)) {
            next[count] = (struct unshared){0};
            err = check_replaced(&attachments[i], start, end, &next[count]);
            taken[count++] = &attachments[i];
        }
    while (err && count)
        unshared_free(&next[--count]);
    if (err)
        return err;
    /* Neither the service thread nor a shadow must touch pages that may belong to another mapping
     * by now. */
    for (unsigned i = 0; i < count; i++)
        attachment_lock(taken[i]);
    err = change(arg);
    for (unsigned i = count; i--;) {
        struct attachment *att = taken[i];

        if (err)
            unshared_free(&next[i]);
        else if (!take(att, &next[i], start, end))
            detach_end(att);
        attachment_unlock(att);
    }
    return err;
}

static int unmap_part(void *att, uint64_t start, uint64_t end)
{
    return munmap(attachment_at(att, start), end - start) ? -errno : 0;
}

/* The program may have put memory of its own into it. */
static int unmap(void *att)
{
    const struct attachment *window = att;

    if (is_adopted(window))
        return munmap(window->base, window->length) ? -errno : 0;
    return own_each(att, OWN_PROGRAM, OWN_ALL, window->offset, attachment_limit(window), unmap_part,
                    att);
}

int detach(struct attachment *att)
{
    return detach_replace((uintptr_t)att->base, attachment_end(att), unmap, att);
}
