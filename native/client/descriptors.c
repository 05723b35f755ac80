/* descriptors.c - giving up numbers that the program wants; see descriptors.h. */
#include "client/descriptors.h"

#include "client/attachments.h"
#include "client/objects.h"
#include "client/watch.h"
#include "core/control.h"

static int move(int *fd)
{
    int moved = control_hide_fd(*fd);

    if (moved < 0)
        return moved;
    *fd = moved;
    return 0;
}

/* Precondition: both locks held. */
static int move_of(struct attachment *att, int fd)
{
    if (fd == att->uffd)
        return watch_move_fd(att, &att->uffd, WATCH_UFFD);
    if (fd == att->moved_uffd)
        return watch_move_fd(att, &att->moved_uffd, WATCH_MOVED);
    if (fd == att->ctl)
        return watch_move_fd(att, &att->ctl, WATCH_CTL);
    for (unsigned i = 0; i < 3; i++) {
        int *held = (int *[]){&att->mem_fd, &att->dev_fd, &att->mm.fd}[i];

        if (fd == *held)
            return move(held);
    }
    int *object = object_descriptor(att, fd);
    return object ? move(object) : 0;
}

int descriptors_give_up(int fd)
{
    int err = 0;

    if (watch_is(fd))
        return watch_move();
    for (unsigned i = 0; i < attachments_used && !err; i++) {
        struct attachment *att = &attachments[i];

        if (!att->live)
            continue;
        attachment_lock(att);
        err = move_of(att, fd);
        attachment_unlock(att);
    }
    return err;
}
