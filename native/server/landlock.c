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
    const char *path;
    int flags;
    int fd;      /* or -errno */
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
        opening->fd = -err;
        return NULL;
    }
    opening->lacking = err;
    opening->fd = open(opening->path, opening->flags);
    if (opening->fd < 0)
        opening->fd = -errno;
    return NULL;
}

int landlock_open(const char *path, int flags, int *lacking)
{
    struct opening opening = {.path = path, .flags = flags};
    sigset_t all, before;
    pthread_t thread;

    sigfillset(&all); /* signals are for the threads that stay */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&thread, NULL, open_restricted, &opening);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err)
        return -err;
    pthread_join(thread, NULL);
    *lacking = opening.lacking;
    return opening.fd;
}
