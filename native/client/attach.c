/*
 * attach.c - attaching a region; see attach.h.
 *
 *   server: .mm, .mem, userfaultfd device
 *   window of .mem, a slot, a userfaultfd over the window
 *   server: READY with the userfaultfd; the service thread takes over, or a shadow
 */
#define _GNU_SOURCE
#include "client/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/arrange.h"
#include "client/attachments.h"
#include "client/bare.h"
#include "client/birth.h"
#include "client/budget_set.h"
#include "client/check.h"
#include "client/detach.h"
#include "client/life.h"
#include "client/mode.h"
#include "client/own.h"
#include "client/place.h"
#include "client/private.h"
#include "client/proc.h"
#include "client/reader.h"
#include "client/service.h"
#include "client/spare.h"
#include "client/trouble.h"
#include "client/view.h"
#include "client/watch.h"
#include "client/window.h"
#include "core/control.h"
#include "core/fd.h"
#include "core/slots.h"
#include "core/uffd.h"

/* Places that are looked at for a window. */
#define PLACES_TRIED 8

int attach_claim(struct attachment *att, uint64_t start_time)
{
    uint64_t process = slot_process((uint32_t)getpid(), proc_pid_namespace());
    int slot = att->reader ? reader_start(att) : slot_claim(&att->mm, process, start_time);

    if (slot < 0)
        return slot;
    att->slot = (unsigned)slot;
    att->claim = atomic_load(&att->mm.slots[slot].claim);
    if (att->reader) /* a slot that nobody else sees */
        atomic_store(&att->mm.slots[slot].state, process);
    /* mremap(2) can make a window of adopted memory longer. */
    mm_set_part(&att->mm.slots[slot], (uintptr_t)att->base, is_adopted(att) ? 0 : att->offset,
                is_adopted(att) ? att->mm.size : att->length);
    att->mm.slots[slot].prot = (uint8_t)att->asked;
    att->mm.slots[slot].way = (uint8_t)att->way;
    private_publish(att);
    return 0;
}

/* Asks for the region's `.mm` and `.mem`. Does not ask for rights that the descriptor does not
 * allow: check_attach() refuses those in its turn. *v3: the mount has -o quirks=v3. */
static int fetch(struct attachment *att, int mode, bool *v3)
{
    const int prot = mode == O_RDONLY ? att->asked & ~PROT_WRITE : att->asked;
    struct msg msg = {.op = MSG_ATTACH, .arg = {(uint64_t)prot}};
    int fds[MSG_FDS] = {-1, -1, -1};
    struct stat mem;
    int err = control_call(att->ctl, &msg, NULL, 0, fds);

    if (err == -EACCES && mode == O_WRONLY && msg.arg[0]) {
        att->mm.size = msg.arg[0]; /* that is all that check_attach() needs */
        att->mm.quantum = msg.arg[1];
        return 0;
    }
    if (err)
        return err;
    att->mem_fd = fds[1] < 0 ? -1 : control_hide_fd(fds[1]);
    att->dev_fd = fds[2] < 0 ? -1 : control_hide_fd(fds[2]);
    att->reader = msg.arg[2] & ATTACH_READER;
    att->inner = msg.arg[2] & ATTACH_INNER && !is_adopted(att);
    att->writable = mode != O_RDONLY;
    att->private = msg.arg[2] & ATTACH_PRIVATE && !is_adopted(att);
    att->charged = msg.arg[2] & ATTACH_CHARGED && !is_adopted(att);
    *v3 = msg.arg[2] & ATTACH_ANY_PROT;
    att->prot = *v3 ? PROT_READ | PROT_WRITE : att->asked;
    memcpy(att->path, msg.text, sizeof att->path);
    att->path[sizeof att->path - 1] = 0;
    fds[0] = fds[0] < 0 ? -1 : control_hide_fd(fds[0]);
    if (att->mem_fd >= 0 && !fstat(att->mem_fd, &mem)) {
        att->mem_device = mem.st_dev;
        att->mem_inode = mem.st_ino;
    }
    /* Without the device the system call does. */
    err = fds[0] < 0 || att->mem_fd < 0 || (fds[2] >= 0 && att->dev_fd < 0)
              ? -EPROTO
              : mm_open(&att->mm, fds[0]);
    if (err)
        fd_close(fds[0]);
    /* Memory that a program shares with its children is its own: it can write it. */
    return !err && att->reader && is_adopted(att) ? -EACCES : err;
}

/* Which part of the region it is. mmap(2) of as much as the whole is the whole, whatever the
 * offset, as in the series; with -o quirks=v3 a part is an error, as there. */
static int choose_part(struct attachment *att, const struct attach_request *request, bool v3)
{
    const uint64_t length = (request->length + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
    const uint64_t size = att->mm.size, quantum = att->mm.quantum;

    att->length = length;
    if (is_adopted(att))
        return length && length <= size ? 0 : -EINVAL;
    if (request->way == ATTACH_PRELOAD && (length == size || v3))
        return length == size ? 0 : -EINVAL;
    if (request->offset >= size || request->offset % quantum)
        return -EINVAL;
    if (request->offset >= att->mm.host_end - HOST_BASE)
        return -ENOMEM; /* a host mm has no addresses there */
    att->offset = request->offset;
    if (!request->length)
        att->length = size - att->offset;
    return att->length && att->length <= size - att->offset && att->length % quantum == 0 ? 0
                                                                                          : -EINVAL;
}

static int allocate(struct attachment *att)
{
    att->linked = calloc(att->mm.size / att->mm.quantum / 64 + 1, sizeof(uint64_t));
    if (!att->linked)
        return -ENOMEM;
    return is_adopted(att) ? pieces_init(&att->pieces, (uintptr_t)att->base, attachment_end(att))
                           : 0;
}

static int map_over(void *arg) { return view_map(arg); }

/* Maps the window in the place of private memory with the same bytes. */
static int take_place(struct attachment *att, struct place *place)
{
    int err = place_look(att, place);

    if (!err)
        err = view_map_over(att);
    if (!err) {
        err = view_watch(att);
        if (!err)
            err = view_drop((uintptr_t)att->base, attachment_end(att));
        if (err)
            place_restore(att, place);
    }
    return err;
}

/* Where a program has unmapped a part of a window, there is no place for another one: an address is
 * in one window. */
static int reserve(struct attachment *att, const struct attach_request *request)
{
    const bool fixed = request->flags & MAP_FIXED_NOREPLACE;
    uint8_t *held[PLACES_TRIED];
    unsigned count = 0;
    int err = window_reserve(request->addr, att->length, att->mm.quantum, request->flags,
                             &att->base);

    while (!err && attachment_over((uintptr_t)att->base, attachment_end(att))) {
        held[count++] = att->base;
        if (fixed || count == PLACES_TRIED)
            err = fixed ? -EEXIST : -ENOMEM;
        else
            err = window_reserve(NULL, att->length, att->mm.quantum, 0, &att->base);
    }
    while (count)
        munmap(held[--count], att->length);
    return err;
}

/* In the place of what is there. */
static int replace(struct attachment *att)
{
    const uint64_t start = (uintptr_t)att->base, end = attachment_end(att);

    return attachments_split(start, end) ? -EINVAL : detach_replace(start, end, map_over, att);
}

/* Makes the window where the request wants it, watched. *mapped: it exists, or a part of
 * the address space is reserved for it. */
static int make_window(struct attachment *att, int fd, int mode,
                       const struct attach_request *request, struct place *place, bool *mapped)
{
    const bool replaces = request->flags & MAP_FIXED && !(request->flags & MAP_FIXED_NOREPLACE);
    int err = replaces ? window_reserve(request->addr, att->length, att->mm.quantum, request->flags,
                                        &att->base)
                       : reserve(att, request);

    *mapped = !err && !replaces;
    if (!err)
        err = check_attach(fd, mode, request, att->length);
    if (!err)
        err = allocate(att);
    if (err)
        return err;
    attachments_cover(att);
    if (request->from) {
        err = take_place(att, place);
        *mapped = !err;
        return err;
    }
    err = replaces ? replace(att) : view_map(att);
    *mapped = *mapped || !err;
    if (!err)
        err = view_watch(att);
    return err ? err : mprotect(att->base, att->length, att->prot) ? -errno : 0;
}

#define UNSERVED                                                                               \
    ": later changes of protections do not reach it, holes are not refused, and files in the " \
    "region cannot be reached"

/* Nobody is to take its faults: the window is Linux's, with the rights of this moment. */
static void leave(struct attachment *att, const char *why)
{
    uffd_unwatch(att->uffd, (uintptr_t)att->base, att->length);
    own_leave(att, OWN_PROGRAM, true);
    detach_unserved(att, true);
    mode_tell(why, -ENOTSUP);
}

/* Who takes its faults: a shadow, or the thread where none can be made (a limit, a filter of system
 * calls, an own pid namespace for children). */
static int start_service(struct attachment *att)
{
    int *own[] = {&att->mm.fd, &att->mem_fd, &att->dev_fd, &att->uffd, &att->ctl};
    int err = has_shadow(att) ? life_start(att) : 0;

    if (err) {
        mode_tell("no shadow can be made: a thread takes its faults", err);
        birth_undo(att);
        att->served = BY_THREAD;
        mode_thread();
        for (unsigned i = 0; i < sizeof own / sizeof *own; i++)
            mode_hide(own[i]);
    }
    err = att->served == BY_THREAD ? service_start() : 0;
    if (att->served == BY_NOBODY) {
        leave(att, attachments_shared() ? "nobody can take its faults after vfork(2)" UNSERVED
                                        : "nobody can take its faults under valgrind" UNSERVED);
    } else if (err == -EINVAL && !proc_children_here()) {
        leave(att, "nobody can take its faults after unshare(CLONE_NEWPID)" UNSERVED);
        err = 0;
    }
    return err;
}

/* Precondition: the table's lock held. */
static int make(struct attachment *att, int fd, const struct attach_request *request)
{
    struct msg ready = {.op = MSG_READY};
    const int type = request->flags & MAP_TYPE, mode = fcntl(fd, F_GETFL) & O_ACCMODE;
    struct place place = {0};
    bool mapped = false, claimed = false, v3 = false;
    int err = 0;

    if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE)
        err = -EINVAL;
    if (!err)
        err = fetch(att, mode, &v3);
    if (!err)
        err = choose_part(att, request, v3);
    if (!err)
        err = make_window(att, fd, mode, request, &place, &mapped);
    if (!err)
        err = attach_claim(att, proc_start_time(0));
    claimed = !err;
    if (!err)
        att->spare = spare_make();
    if (!err)
        err = budget_start(att);
    ready.arg[0] = att->slot;
    ready.arg[1] = att->claim;
    if (!err && att->reader)
        reader_introduce(att, &ready);
    if (!err)
        err = control_call(att->ctl, &ready, &att->uffd, 1, NULL);
    /* From here on the server asks us (ARRANGE) when that changes. */
    if (!err)
        err = arrange(att, 0, att->mm.size, false);
    if (!err)
        err = start_service(att);
    attachment_lock(att);
    if (!err && att->served == BY_THREAD)
        err = watch_add(att);
    /* The window goes first: after that none of our threads can be needed any more. */
    if (err && mapped && request->from)
        place_restore(att, &place);
    else if (err && mapped)
        munmap(att->base, att->length);
    place_forget(att, &place);
    if (err)
        detach_drop(att, claimed);
    else
        att->live = true;
    attachment_unlock(att);
    if (!err)
        attachments_mark();
    return err;
}

/* Clears everything but the lock, which the service thread may be holding for a look. */
static void reset(struct attachment *att, const struct attach_request *request)
{
    memset((char *)att + sizeof att->lock, 0, sizeof *att - sizeof att->lock);
    att->mm.fd = att->mem_fd = att->dev_fd = att->uffd = att->moved_uffd = att->ctl = -1;
    att->shadow.maps_fd = -1;
    att->way = request->way;
    att->served = mode_of_next();
    att->asked = request->prot & (PROT_READ | PROT_WRITE);
}

/* Asks the server behind `fd`, which may take its time, so without the lock, and with signals. The
 * entry of the table is taken meanwhile, and a forked child closes the ends.
 * Precondition: the table's lock held. */
static int ask(struct attachment *att, int fd)
{
    int err = control_begin(&att->ends);

    if (err)
        return err;
    att->asking = true;
    attachments_unlock();
    err = control_ask(fd, &att->ends);
    attachments_lock();
    att->asking = false;
    return control_finish(&att->ends, err);
}

int attach(int fd, const struct attach_request *request, void **base)
{
    struct attachment *att;
    int err;

    if (fcntl(fd, F_GETFD) < 0)
        return -errno;
    err = mode_choose();
    if (err)
        return err;
    bare_own();
    trouble_choose();
    att = attachment_unused();
    if (!att)
        return -ENOMEM;
    reset(att, request);
    /* A thread of the child would end with it, and has other descriptors than its parent. */
    if (attachments_shared())
        att->served = BY_NOBODY;
    err = ask(att, fd);
    if (err < 0)
        return err;
    att->ctl = err;
    err = make(att, fd, request);
    *base = att->base;
    return err;
}
