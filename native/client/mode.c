/* mode.c - thread or shadow; see mode.h. */
#define _GNU_SOURCE
#include "client/mode.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "client/attachments.h"
#include "core/control.h"
#include "core/hidden.h"

static bool chosen, verbose;
static enum served_by mode = BY_SHADOW;

/* What a shadow calls, and a preloaded library may have replaced by something that needs a thread
 * of the C library's. */
static void *const called[] = {
    read,       pread,  close,   poll,    lseek,    fallocate, statx,       ioctl,
    mmap,       munmap, madvise, mremap,  mprotect, sendmsg,   recvmsg,     connect,
    socketpair, socket, munlock, syscall, getpid,   nanosleep, sched_yield, clock_gettime,
};

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* Functions of our own, of the C library and of sanitizers, which stay out of the way of threads
 * that they have not seen begin. */
static bool is_known(const char *library)
{
    static const char *const known[] = {"libmsharefs", "libc.", "ld-", "linux-vdso"};

    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (!strncmp(library, known[i], strlen(known[i])))
            return true;
    return strstr(library, "san.so");
}

static bool any_replaced(void)
{
    Dl_info program = {0}, ours = {0}, found;

    dladdr((void *)getauxval(AT_PHDR), &program); /* a sanitizer may be part of it */
    dladdr((void *)&mode_choose, &ours);
    for (unsigned i = 0; i < sizeof called / sizeof *called; i++)
        if (dladdr(called[i], &found) && found.dli_fbase != program.dli_fbase &&
            found.dli_fbase != ours.dli_fbase && !is_known(file_name(found.dli_fname)))
            return true;
    return false;
}

/* Under valgrind only one thread runs at a time, also while it is in a fault; and clone(2) as for a
 * shadow ends the process. */
static bool under_valgrind(void)
{
    const char *preload = getenv("LD_PRELOAD");

    return preload && strstr(preload, "/vgpreload_");
}

static enum served_by by_default(void)
{
    const char *debug = getenv("MSHAREFS_DEBUG");

    if (under_valgrind())
        return BY_NOBODY;
    /* A shadow could not write what is asked for. */
    return (debug && *debug) || any_replaced() ? BY_THREAD : BY_SHADOW;
}

int mode_choose(void)
{
    const char *asked = getenv("MSHAREFS_CLIENT");

    if (chosen)
        return 0;
    if (!asked || !*asked)
        mode = by_default();
    else if (!strcmp(asked, "thread"))
        mode = BY_THREAD;
    else if (strcmp(asked, "shadow") != 0)
        return -EINVAL;
    verbose = getenv("MSHAREFS_VERBOSE");
    if (mode != BY_THREAD) /* the program has none of ours */
        hidden_none(true);
    chosen = true;
    return 0;
}

enum served_by mode_of_next(void) { return mode; }

void mode_tell(const char *what, int err)
{
    const char *why = strerrordesc_np(-err);
    char text[256];
    int size;

    if (!verbose)
        return;
    size = snprintf(text, sizeof text, "msharefs: process %d: %s (%s)\n", (int)getpid(), what,
                    why ? why : "unknown");
    (void)!write(STDERR_FILENO, text, (size_t)size);
}

void mode_thread(void)
{
    bool any = false;

    mode = BY_THREAD;
    for (unsigned i = 0; i < attachments_used; i++)
        any = any || (attachments[i].live && has_shadow(&attachments[i]));
    /* The numbers of a shadow's descriptors are in a table of its own. */
    hidden_none(any);
}

void mode_hide(int *fd)
{
    const int hidden = *fd < 0 ? *fd : control_hide_fd(*fd);

    if (hidden >= 0) /* otherwise it keeps its number */
        *fd = hidden;
}
