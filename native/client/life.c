/*
 * life.c - a shadow from its birth to its work; see life.h.
 *
 *   mother          signals, session, limits of its own
 *                   descriptors: the program's copies, closed there at once; in a child of fork(2),
 *                   those that inherit.c gets
 *                   confine.c: no rights but what serving takes
 *   shadow          tend.c: its work
 *
 * In a child of fork(2), which may end or be replaced by exec(2) soon, it is idle at first: it
 * watches the window, and takes what its parent's shadow has sent when something happens, or after
 * a while.
 */
#define _GNU_SOURCE
#include "client/life.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/arrange.h"
#include "client/attachments.h"
#include "client/birth.h"
#include "client/confine.h"
#include "client/inherit.h"
#include "client/own.h"
#include "client/proc.h"
#include "client/reader.h"
#include "client/request.h"
#include "client/serve.h"
#include "client/tend.h"
#include "client/view.h"
#include "core/control.h"
#include "core/fd.h"
#include "core/linger.h"
#include "core/slots.h"

/* Set while the shadow may die of a SIGBUS: it is the program's memory, and each shadow has its
 * own attachment. Found by the stack that the signal came on. */
static struct attachment *whose(const void *stack)
{
    for (unsigned i = 0; i < attachments_used; i++) {
        const uint8_t *place = attachments[i].shadow.place;

        if (place && (const uint8_t *)stack >= place &&
            (const uint8_t *)stack < attachments[i].shadow.bell)
            return &attachments[i];
    }
    return NULL;
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    struct attachment *att = whose(__builtin_frame_address(0));

    (void)number, (void)context;
    if (info->si_code <= 0) /* sent by somebody */
        return;
    if (!att || !att->shadow.tends || att->shadow.broken)
        syscall(SYS_exit_group, 1);
    else
        __builtin_longjmp(att->shadow.escape, 1);
}

__asm__(".pushsection .text\n"
        "shadow_restorer: movq $15, %rax\n" /* rt_sigreturn */
        "syscall\n"
        ".popsection\n");
extern void shadow_restorer(void) __asm__("shadow_restorer");

/* As the kernel has it; the C library's function may be the program's own. */
static void catch_bus_error(void)
{
    const struct {
        void (*handler)(int, siginfo_t *, void *);
        unsigned long flags;
        void (*restorer)(void);
        uint64_t mask;
    } action = {on_bus_error, SA_SIGINFO | SA_NODEFER | 0x04000000 /* SA_RESTORER */,
                shadow_restorer, 0};
    const uint64_t blocked = ~(1ull << (SIGBUS - 1));

    syscall(SYS_rt_sigaction, SIGBUS, &action, NULL, 8);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &blocked, NULL, 8);
}

/* The program waits for its child that long where the server reads nothing. */
#define HELLO_MS 1000

static void name(int program)
{
    char text[PROC_PATH] = "msharefs: ", path[PROC_PATH];

    proc_path(path, program, "");
    strcpy(text + strlen(text), path + strlen("/proc/"));
    syscall(SYS_prctl, PR_SET_NAME, text, 0, 0, 0); /* the C library's may be the program's own */
}

/* Our own limits: the program's may be too low for us. */
static void set_limits(void)
{
    const struct rlimit no_core = {0, 0};
    struct rlimit files;

    setrlimit(RLIMIT_CORE, &no_core);
    if (getrlimit(RLIMIT_NOFILE, &files))
        return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_max < 2 * OBJECTS_MAX) {
        files.rlim_cur = files.rlim_max = 2 * OBJECTS_MAX;
        setrlimit(RLIMIT_NOFILE, &files); /* if we may */
    }
}

/* Of the table that we have from the program, everything but our own is closed. */
static void keep_own_descriptors(const struct attachment *att)
{
    int own[] = {att->mm.fd, att->mem_fd, att->dev_fd, att->uffd, att->ctl};
    unsigned from = 0;

    for (unsigned done = 0; done < sizeof own / sizeof *own; done++) {
        unsigned least = done;

        for (unsigned i = done + 1; i < sizeof own / sizeof *own; i++)
            if (own[i] < own[least])
                least = i;
        const int fd = own[least];

        own[least] = own[done];
        own[done] = fd;
        if (fd < 0)
            continue;
        if ((unsigned)fd > from)
            syscall(SYS_close_range, from, (unsigned)fd - 1, 0);
        from = (unsigned)fd + 1;
    }
    syscall(SYS_close_range, from, ~0u, 0);
}

/* The server hears of the child through the parent's connection, and need not answer. */
static void join(struct attachment *att, int parent)
{
    struct msg forked = {.op = MSG_FORKED, .arg = {att->slot, att->claim}};
    int pair[2];

    if (att->reader)
        reader_introduce(att, &forked);
    if (parent < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return;
    const int fds[] = {pair[1], att->uffd, att->shadow.end_fd};
    if (!control_send(parent, &forked, fds, 3, control_deadline(HELLO_MS)))
        att->ctl = pair[0];
    else
        close(pair[0]); /* the server is away: we rejoin */
    close(pair[1]);
}

/* In a child of fork(2): what its parent's shadow gives, a userfaultfd of its own, and a window as
 * it must be. */
static int take_over(struct attachment *att)
{
    int err = tend_take(att);

    serve_anew(att);
    if (!err && att->mm.fd < 0) /* a request of the program's has tried before */
        err = -EPROTO;
    if (!err && att->uffd < 0)
        err = is_adopted(att) ? view_watch(att) : own_renew(att);
    if (!err)
        err = arrange(att, 0, att->mm.size, false);
    if (!err && att->shadow.bell_fd < 0)
        err = request_listen(att);
    if (!err) /* the server is told last: it takes the slot back where we end after that */
        join(att, att->shadow.parent_ctl);
    fd_close(att->shadow.parent_ctl);
    att->shadow.parent_ctl = -1;
    return err;
}

/* What takes another name to open than a descriptor, before that is forbidden. */
static int look_at_program(struct shadow *shadow)
{
    char path[PROC_PATH];

    shadow->end_fd = (int)syscall(SYS_pidfd_open, shadow->program, 0);
    if (shadow->end_fd < 0) /* it may have ended already */
        return -errno;
    /* Of our own, if there is no number. */
    const int number = proc_number(shadow->program, shadow->end_fd);
    proc_path(path, number, "/statm");
    shadow->size_fd = open(path, O_RDONLY | O_CLOEXEC);
    /* Ours are the same. But Linux has the program's directory at hand already; and there is
     * something in it as long as its first thread lives, as that of a child does. */
    if (shadow->inherits) {
        proc_path(path, number, "/maps");
        shadow->maps_fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (shadow->maps_fd < 0) /* or we may not look */
        shadow->maps_fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    return 0;
}

/* A window with nothing in it but .mem, as the child has it from its parent, can be watched at
 * once. */
static void watch_idly(struct attachment *att)
{
    if (!own_whole(att) || view_watch(att) || request_listen(att)) {
        fd_close(att->uffd);
        fd_close(att->shadow.bell_fd);
        att->uffd = att->shadow.bell_fd = -1;
        att->shadow.idle = false;
    }
}

static int prepare(struct attachment *att)
{
    struct shadow *shadow = &att->shadow;
    int err;

    catch_bus_error();
    set_limits();
    /* Closing a file may take its file system's time: of what we do not need, none is copied. */
    if (shadow->inherits)
        syscall(SYS_close_range, 0u, ~0u, CLOSE_RANGE_UNSHARE);
    else if (!unshare(CLONE_FILES))
        keep_own_descriptors(att);
    else
        return -errno;
    /* The parent's shadow is asked first: it may have to wake up, and meanwhile we go on. */
    if (shadow->idle && !inherit_fetch(att))
        inherit_done(shadow->parent.births);
    else if (shadow->inherits)
        shadow->kit_fd = inherit_ask(att);
    if (shadow->inherits && att->mm.fd < 0 && shadow->kit_fd < 0)
        return shadow->kit_fd;
    setsid();
    name(shadow->program);
    err = look_at_program(shadow);
    if (err)
        return err;
    if (shadow->inherits && !is_adopted(att) && !own_any(att))
        return LIFE_NO_WINDOW;
    inherit_listen(att);
    if (chdir("/")) /* a directory that is somebody's must not be busy for our sake */
        return -errno;
    if (shadow->idle)
        watch_idly(att);
    if (!shadow->inherits)
        err = request_listen(att);
    if (!err)
        err = confine(shadow->server);
    if (!err && (shadow->idle || !shadow->inherits)) /* the program need not wait for more */
        atomic_store(&shadow->state, SHADOW_READY);
    return err;
}

/* Something happens: from now on it is as any other. */
static void wake_up(struct attachment *att)
{
    int err;

    tend_lock(att);
    err = take_over(att);
    att->shadow.idle = false;
    if (err)
        own_leave(att, own_maps(att), true);
    lock_release(&att->lock);
    if (err) {
        slot_release(&att->mm, att->slot, att->claim);
        for (;;)
            syscall(SYS_exit_group, 1);
    }
}

static void live(struct attachment *att)
{
    struct shadow *shadow = &att->shadow;

    if (shadow->idle) {
        tend_idle(att);
        wake_up(att);
    } else if (shadow->inherits) {
        const int err = take_over(att);

        birth_done(att, err ? err : SHADOW_READY);
        if (err)
            return;
    }
    tend(att);
}

/* Whether orphans below the program come to it. A child of fork(2) has not inherited that. */
static bool adopts(void)
{
    int reaper = 0;

    return !syscall(SYS_prctl, PR_GET_CHILD_SUBREAPER, &reaper, 0ul, 0ul, 0ul) && reaper;
}

static int start(struct attachment *att, bool inherits, bool idle)
{
    struct shadow *shadow = &att->shadow;

    shadow->own_child = getpid() == 1 || (!inherits && adopts());
    shadow->inherits = inherits;
    shadow->idle = idle;
    shadow->bell_fd = shadow->end_fd = shadow->maps_fd = shadow->size_fd = -1;
    shadow->post_fd = shadow->kit_fd = shadow->parent_ctl = -1;
    shadow->broken = shadow->burst = shadow->tends = false;
    shadow->lingered_ns = 0;
    shadow->rest_ms = TEND_EXEC_MIN_MS;
    shadow->look_ms = clock_ns(CLOCK_MONOTONIC) / 1000000u + TEND_EXEC_MIN_MS;
    atomic_store(&shadow->request.op, REQUEST_NONE);
    return birth(att, prepare, live);
}

int life_inherit(struct attachment *att, bool plain)
{
    const int err = start(att, true,
                          plain && !att->reader && !is_adopted(att) && !att->budget.spans);

    /* Otherwise the server knows when we have started, or soon will. */
    if (!err && att->ctl < 0 && !att->shadow.idle)
        att->mm.slots[att->slot].start_time = proc_start_time(0);
    return err;
}

int life_start(struct attachment *att)
{
    int *own[] = {&att->mm.fd, &att->mem_fd, &att->dev_fd, &att->uffd, &att->ctl};
    int err;

    /* The first process in a new namespace would be its init, and not for the program. */
    if (!proc_children_here())
        return -EINVAL;
    if (birth_family(att))
        return -ENOMEM;
    att->shadow.server = confine_address(att->path);
    if (getentropy(att->shadow.cookie, sizeof att->shadow.cookie))
        return -errno;
    err = start(att, false, false);
    for (unsigned i = 0; !err && i < sizeof own / sizeof *own; i++)
        fd_close(*own[i]); /* the numbers are the shadow's from now on */
    return err;
}
