/*
 * fork.c - attachments in a child of fork().
 *
 * The child's mappings have lost their registration, so before fork() returns in the
 * child, it makes a slot, a userfaultfd and a connection of its own. A window is
 * mapped anew, without the objects in it, whose descriptors the child inherits;
 * adopted memory stays as the program has arranged it.
 *
 * Where a limit or a filter of system calls leaves no room for a shadow, a thread takes the
 * child's faults; where it leaves none for that either, nobody does: the window stays the mapping
 * of .mem that the child has inherited, which is all that most programs need.
 */
#define _GNU_SOURCE
#include "client/fork.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/arrange.h"
#include "client/attach.h"
#include "client/attachments.h"
#include "client/birth.h"
#include "client/budget_set.h"
#include "client/detach.h"
#include "client/inherit.h"
#include "client/life.h"
#include "client/mode.h"
#include "client/objects.h"
#include "client/own.h"
#include "client/proc.h"
#include "client/reader.h"
#include "client/serve.h"
#include "client/service.h"
#include "client/view.h"
#include "client/watch.h"
#include "core/control.h"
#include "core/fd.h"
#include "core/slots.h"
#include "core/vma.h"

/* The program waits for its child that long where the server reads nothing. */
#define HELLO_MS 1000

/* The server hears of the child through the parent's connection, and need not answer. */
static void join(struct attachment *att, int parent)
{
    struct msg forked = {.op = MSG_FORKED, .arg = {att->slot, att->claim}};
    int pair[2];

    if (att->reader)
        reader_introduce(att, &forked);
    if (parent < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return;
    if (!control_send(parent, &forked, (int[]){pair[1], att->uffd}, 2, control_deadline(HELLO_MS)))
        att->ctl = control_hide_fd(pair[0]);
    else
        close(pair[0]); /* the server is away: the service thread rejoins */
    close(pair[1]);
}

/* Lets go of what is the parent's. Returns its connection. */
static int leave_parent(struct attachment *att)
{
    const int parent = att->ctl;

    att->ctl = -1;
    close(att->uffd);
    fd_close(att->moved_uffd);
    att->uffd = att->moved_uffd = -1;
    objects_unask(att);
    return parent;
}

/* For the service thread: userfaultfd, window, connection. */
static int take_over(struct attachment *att, int parent)
{
    int err = is_adopted(att) ? view_watch(att) : own_renew(att);

    serve_anew(att);
    if (!err)
        err = arrange(att, 0, att->mm.size, false);
    if (!err)
        join(att, parent);
    if (!err && att->ctl < 0)
        att->mm.slots[att->slot].start_time = proc_start_time(0);
    return err ? err : watch_add(att);
}

/* No shadow could be made: from the parent's, the child itself takes what it needs. */
static int take_descriptors(struct attachment *att, int *parent)
{
    int *own[] = {&att->mm.fd, &att->mem_fd, &att->dev_fd, parent};
    const int sock = inherit_ask(att);

    att->shadow.parent_ctl = -1;
    const int err = sock < 0 ? sock : inherit_take(att, sock);

    *parent = att->shadow.parent_ctl;
    inherit_end(att);
    birth_undo(att);
    objects_drop(att); /* they are asked for again */
    att->served = BY_THREAD;
    mode_thread();
    for (unsigned i = 0; i < sizeof own / sizeof *own; i++)
        mode_hide(own[i]);
    return err;
}

/* Whether the window has been .mem and nothing else, so that the child has a whole one of it
 * already. */
static bool is_plain(struct attachment *att)
{
    uint64_t used;
    bool plain = true;

    slot_enter(&att->mm, att->slot);
    const struct mm_vma *set = vma_snapshot(&att->mm, atomic_load(&att->mm.header->epoch), &used);
    for (uint64_t i = 0; set && i < used; i++)
        plain = plain && !set[i].object;
    slot_leave(&att->mm, att->slot);
    return set && plain;
}

/* What its parent remembers of its faults. The rest is for whoever takes them (serve_anew()). A
 * page that the child writes to has to be copied first, so nothing is written that is there. */
static void forget_faults(struct attachment *att)
{
    if (att->poisons_used)
        att->poisons_used = 0;
    if (att->objects_again_ms)
        att->objects_again_ms = 0;
    if (att->unfit_ms)
        att->unfit_ms = 0;
    if (att->handed.count)
        att->handed.count = 0;
}

/* A filter of system calls kills who makes a shadow: so it would kill the child, if that tried. */
static void forbidden(struct attachment *att)
{
    if (att->mm.fd < 0 && att->shadow.kit_fd < 0)
        inherit_done(att->shadow.parent.births); /* it has asked for nothing */
}

/* *claimed is set if the child has got a slot of its own. */
static int attach_child(struct attachment *att, bool *claimed)
{
    const bool poisoned = att->poisons_used;
    int parent = -1, err;

    forget_faults(att);
    if (has_shadow(att))
        detach_forget(att); /* they are its shadow's */
    else
        parent = leave_parent(att);
    err = attach_claim(att, 0);
    *claimed = !err;
    if (!err)
        budget_forked(att);
    if (!err && has_shadow(att)) {
        err = life_inherit(att, !poisoned && is_plain(att));
        if (err == -ECHILD) /* its mother was killed before she asked for anything */
            forbidden(att);
        if (err) /* whatever its mother had */
            detach_forget(att);
        if (err == -ECHILD || err == LIFE_NO_WINDOW)
            return err;
        if (err) {
            mode_tell("no shadow can be made after fork: a thread takes its faults", err);
            err = take_descriptors(att, &parent);
        }
    }
    if (!err && !has_shadow(att))
        err = service_start();
    if (!err && !has_shadow(att))
        err = take_over(att, parent);
    fd_close(parent);
    return err;
}

/* Whether the child has the window at all: MADV_DONTFORK, which may have passed us by. */
static bool inherited(struct attachment *att)
{
    if (is_adopted(att)) {
        pieces_fork(&att->pieces);
        return att->pieces.count;
    }
    /* The shadow's mother looks whether it is there. */
    return !(att->advice & ADVICE_DONTFORK) && (att->served != BY_THREAD || own_any(att));
}

struct leaving {
    struct attachment *att;
    bool claimed;
};

static void leave(void *arg)
{
    const struct leaving *leaving = arg;

    own_leave(leaving->att, OWN_PROGRAM, leaving->claimed);
}

/* Leaves the window to Linux. */
static void leave_window(struct attachment *att, bool claimed)
{
    struct leaving leaving = {att, claimed};

    if (!has_shadow(att)) {
        leave(&leaving);
        return;
    }
    birth_errand(att, leave, &leaving);
    if (claimed) /* it may have been killed before that */
        slot_leave(&att->mm, att->slot);
}

static void attach_all(void)
{
    for (unsigned i = 0; i < attachments_used; i++) {
        struct attachment *att = &attachments[i];
        bool claimed = false;

        if (att->asking) { /* another thread, for the parent */
            att->asking = false;
            control_finish(&att->ends, -ECANCELED);
        }
        if (!att->live)
            continue;
        atomic_store(&att->shadow.alive, 0); /* the parent's */
        if (has_shadow(att))
            inherit_begin(att);
        const bool shadowed = has_shadow(att), expected = inherited(att);
        const int err = expected && att->served != BY_NOBODY ? attach_child(att, &claimed) : 0;
        const bool here = expected && err != LIFE_NO_WINDOW;

        if (shadowed)
            inherit_end(att);
        if (here && !err)
            continue;
        if (!claimed && has_shadow(att)) {
            inherit_done(att->shadow.parent.births); /* it asks for nothing */
            detach_forget(att);
        }
        if (here)
            mode_tell("nobody can take the faults of a child: holes and protections of its regions "
                      "are not enforced there, and files in them cannot be reached",
                      err);
        if (here && !is_adopted(att)) { /* fork() cannot fail any more */
            leave_window(att, claimed);
            detach_unserved(att, claimed);
            continue;
        }
        detach_drop(att, claimed);
    }
}

/* Whether last_in_child() will be called, too, when the fork() of this thread is done. */
static _Thread_local bool announced;
/* Of the program, before the fork() of this thread. */
static _Thread_local int error_before;

static void announce(void) { announced = true; }

/* No change of ours is half done in the child. The handlers of others have run before this one,
 * as far as possible: they may wait for something that needs a fault answered, or an munmap(2). */
static void freeze(void)
{
    attachments_lock();
    for (unsigned i = 0; i < attachments_used; i++) {
        attachment_lock(&attachments[i]);
        if (attachments[i].live && has_shadow(&attachments[i]))
            inherit_expect(&attachments[i]);
    }
    error_before = errno;
    errno = 0;
}

static void thaw(void)
{
    const int failed = errno; /* nothing between freeze() and here sets it but fork(2) */

    errno = failed ? failed : error_before;
    announced = false;
    for (unsigned i = attachments_used; i--;) {
        if (failed && attachments[i].live && has_shadow(&attachments[i]))
            inherit_done(attachments[i].shadow.births); /* there is no child */
        attachment_unlock(&attachments[i]);
    }
    attachments_unlock();
}

/* Runs once, however often it was registered. */
static void last_in_child(void)
{
    if (!announced)
        return;
    announced = false;
    attachments_relock();
    proc_forked();
    watch_forget();
    attach_all();
    attachments_unlock();
}

static void first_in_child(void)
{
    for (unsigned i = 0; i < attachments_used; i++)
        lock_reset(&attachments[i].lock);
    if (announced) /* until then others' handlers run while we hold the table's lock */
        return;
    announce();
    last_in_child();
}

void fork_prepare(void) { pthread_atfork(freeze, thaw, first_in_child); }

/* The last handler in the child: starting a thread takes memory, and an allocator may have a
 * handler of its own, which has to come before. */
void fork_attached(void)
{
    static _Atomic bool done;
    sigset_t all, mask;

    if (done)
        return;
    /* The C library has a lock of its own there: a signal handler must not fork meanwhile. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    if (!pthread_atfork(announce, NULL, last_in_child))
        done = true;
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}
