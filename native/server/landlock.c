/* landlock.c - see landlock.h. */
#define _GNU_SOURCE
#include "server/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14) /* Linux 6.2 */
#endif

struct opening {
    const char *const *paths;
    unsigned count, at; /* `at` of them are open */
    int flags;
    int *fds;
    int err;     /* -errno of the next one; 0: all are open */
    int lacking; /* why the thread is not restricted; 0: it is */
};

/* For the calling thread alone, and as long as it lives. Returns 0 or an errno. */
static int restrict_thread(void)
{
    struct landlock_ruleset_attr handled = {.handled_access_fs = LANDLOCK_ACCESS_FS_TRUNCATE};
    long rules = syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0);
    int err = 0;

    if (rules < 0)
        return errno;
    /* Without it only CAP_SYS_ADMIN may do that. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_landlock_restrict_self, rules, 0))
        err = errno;
    close((int)rules);
    return err;
}

static void *open_restricted(void *argument)
{
    struct opening *opening = argument;
    int err = restrict_thread();

    /* A shortage passes; it does not say that Landlock is lacking. */
    if (err == EMFILE || err == ENFILE || err == ENOMEM) {
        opening->err = -err;
        return NULL;
    }
    opening->lacking = err;
    for (; opening->at < opening->count; opening->at++) {
        const int fd = open(opening->paths[opening->at], opening->flags);

        if (fd < 0) {
            opening->err = -errno;
            break;
        }
        opening->fds[opening->at] = fd;
    }
    return NULL;
}

int landlock_open(const char *const *paths, unsigned count, int flags, int *fds, unsigned *failed,
                  int *lacking)
{
    struct opening opening = {.paths = paths, .count = count, .flags = flags, .fds = fds};
    sigset_t all, before;
    pthread_t thread;

    sigfillset(&all); /* signals are for the threads that stay */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&thread, NULL, open_restricted, &opening);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    *failed = 0;
    if (err)
        return -err;
    pthread_join(thread, NULL);
    *lacking = opening.lacking;
    *failed = opening.at;
    while (opening.err && opening.at)
        close(fds[--opening.at]);
    return opening.err;
}
