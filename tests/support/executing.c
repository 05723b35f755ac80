/* Keeps a process in the middle of execve(2): executing FILE REGION, where FILE is on a FUSE. It
 * has made REGION and a connection to it, and says the number of that one's other end, which it
 * shares.
 *
 * The process shares the address space of another, which takes a dirty page of that file out of it:
 * Linux writes the page back with the address space locked. A second thread, which wants to change
 * the address space, keeps readers out, and execve(2) is one. It has taken its own lock by then.
 *
 * All memory is there before: while the address space is locked, nobody can have more of it. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <msharefs.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAGE = 4096, STACK = 1 << 16 };

static char stack[STACK] __attribute__((aligned(16)));
static char *dirty;
static int unmap[2], change[2], go[2];

static void wait_for(const int pipe[2])
{
    char byte;

    while (read(pipe[0], &byte, 1) < 0)
        ;
}

static void *unmaps(void *unused)
{
    (void)unused;
    wait_for(unmap);
    munmap(dirty, PAGE);
    return NULL;
}

static void *changes(void *unused)
{
    (void)unused;
    wait_for(change);
    mmap(NULL, 64 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return NULL;
}

static int executes(void *path)
{
    static char *const argv[] = {"true", NULL};
    struct mshare_connect ask = {0};
    int ends[2], fd = open(path, O_RDWR | O_CREAT, 0600);

    if (fd < 0 || ftruncate(fd, 2 << 20) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends))
        _exit(1);
    ask.fd = ends[1];
    if (ioctl(fd, MSHAREFS_CONNECT, &ask))
        _exit(1);
    dprintf(1, "%d %d\n", getpid(), ends[0]);
    wait_for(go);
    execv("/bin/true", argv);
    _exit(1);
}

int main(int argc, char **argv)
{
    const int *steps[] = {unmap, change, go};
    pthread_t threads[2];
    char line;
    int fd;

    if (argc != 3 || (fd = open(argv[1], O_RDWR)) < 0)
        err(1, "a file");
    dirty = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (dirty == MAP_FAILED || pipe(unmap) || pipe(change) || pipe(go))
        err(1, "a page");
    *dirty = 1;
    if (pthread_create(&threads[0], NULL, unmaps, NULL) ||
        pthread_create(&threads[1], NULL, changes, NULL))
        err(1, "threads");
    if (clone(executes, stack + STACK, CLONE_VM | CLONE_FILES | SIGCHLD, argv[2]) < 0)
        err(1, "a process");
    for (unsigned i = 0; i < 3; i++)
        if (read(0, &line, 1) != 1 || write(steps[i][1], "", 1) != 1)
            return 1;
    pause();
}
