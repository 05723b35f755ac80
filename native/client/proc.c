/* proc.c - a process's questions to /proc about itself; see proc.h. */
#define _GNU_SOURCE
#include "client/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void proc_read(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);

    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = 0;
}

static const char *read_number(const char *at, uint64_t *number)
{
    /* Not by strtoull(3), which asks for the thread's language: a shadow's has none. */
    for (*number = 0; *at >= '0' && *at <= '9'; at++)
        *number = 10 * *number + (uint64_t)(*at - '0');
    return at;
}

static char *put_number(char *at, int number)
{
    char digits[12];
    unsigned count = 0;

    for (unsigned left = (unsigned)number; left || !count; left /= 10)
        digits[count++] = (char)('0' + left % 10);
    while (count)
        *at++ = digits[--count];
    *at = 0;
    return at;
}

int proc_number(int pid, int pidfd)
{
    static const char mark[] = "\nPid:\t";
    char text[1024], path[PROC_PATH] = "/proc/self/fdinfo/";
    const ssize_t got = readlink("/proc/self", text, sizeof text - 1);
    const char *at;
    uint64_t number;

    text[got > 0 ? got : 0] = 0;
    read_number(text, &number);
    if (number == (uint64_t)getpid())
        return pid;
    put_number(path + strlen(path), pidfd);
    proc_read(path, text, sizeof text);
    at = strstr(text, mark);
    if (!at)
        return 0;
    read_number(at + strlen(mark), &number);
    return (int)number;
}

void proc_path(char path[PROC_PATH], int pid, const char *name)
{
    strcpy(path, "/proc/self");
    if (pid)
        put_number(path + strlen("/proc/"), pid);
    strcat(path, name);
}

uint64_t proc_start_time(int pid)
{
    uint64_t ticks = 0;
    char text[1024], path[PROC_PATH], *at;

    proc_path(path, pid, "/stat");
    proc_read(path, text, sizeof text);
    at = strrchr(text, ')'); /* the name may hold anything, even a parenthesis */
    for (unsigned field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (at)
        read_number(at + 1, &ticks);
    return ticks;
}

/* The namespace of process `pid`. A child need not ask for it again: looking anything up in
 * /proc takes half as long as making a thread. */
static struct {
    pid_t pid;
    uint32_t inode;
} namespace;

uint32_t proc_pid_namespace(void)
{
    struct stat found;

    if (namespace.pid != getpid()) {
        namespace.inode = stat("/proc/self/ns/pid", &found) ? 0 : (uint32_t)found.st_ino;
        namespace.pid = getpid();
    }
    return namespace.inode;
}

bool proc_children_here(void)
{
    const uint32_t ours = proc_pid_namespace();
    struct stat found;

    if (ours && stat("/proc/self/ns/pid_for_children", &found))
        return errno != ENOENT; /* their namespace waits for its first process */
    return !ours || (uint32_t)found.st_ino == ours;
}

void proc_forked(void)
{
    /* A child in another namespace than its parent sees no parent. */
    namespace.pid = getppid() ? getpid() : 0;
}
