/*
 * locker.c - a call that takes the lock of the attachments, for a tracer that sends a signal at
 * each of its instructions. A library, built with libmsharefs.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "msharefs.h"

#define PATIENCE_MS 10000

static volatile sig_atomic_t in_child, over;

/* raise(3) would add two hundred instructions. */
static void stop(void) { syscall(SYS_kill, getpid(), SIGSTOP); }

/* The child has to come to the end of the call that was interrupted. */
static void on_signal(int number)
{
    struct pollfd end = {.events = POLLIN};
    int status = 0;
    pid_t child;

    (void)number;
    if (over)
        return;
    child = fork();
    mshare_budget(NULL, 0);
    in_child = !child;
    if (!child)
        return;
    end.fd = (int)syscall(SYS_pidfd_open, child, 0);
    if (end.fd < 0 || poll(&end, 1, PATIENCE_MS) != 1)
        kill(child, SIGKILL);
    waitpid(child, &status, 0);
    close(end.fd);
    if (status)
        _exit(9);
}

/* Stops before and after the call; SIGUSR1 forks meanwhile. */
void stop_locking(int region)
{
    struct sigaction action = {.sa_handler = on_signal};
    void *base = mshare_attach(region, 0, 0, NULL, MSHARE_ATTACH_READ);

    sigaction(SIGUSR1, &action, NULL);
    stop();
    mshare_budget(NULL, 0);
    over = 1;
    if (in_child)
        _exit(mshare_detach(base) ? 8 : 0);
    stop();
}
