/*
 * actor.c - a process that does what the test tells it, and reports the result.
 *
 * Commands come as packets of text on the socket whose number is argv[1]: a name and numbers,
 * and sometimes a descriptor. Each is answered by one packet:
 *
 *   ok [NUMBER...] | errno NUMBER | signal SIGNO CODE ADDRESS
 *
 * Addresses are the actor's own. The actor ends with the other end of the socket.
 */
#define _GNU_SOURCE
#include "actor.h"

#include <errno.h>
#include <fcntl.h>
#include <msharefs.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGS_MAX 8
#define REPLY_MAX 512

static int channel;
static int received = -1; /* the descriptor that came with the command */
static char *program;

void reply(int fd, const char *format, ...)
{
    char text[REPLY_MAX], space[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {text, 0};
    struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1};
    va_list args;

    va_start(args, format);
    part.iov_len = (size_t)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (fd >= 0) {
        head.msg_control = space;
        head.msg_controllen = sizeof space;
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&head);
        *cmsg = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(cmsg), &fd, sizeof fd);
    }
    if (sendmsg(channel, &head, MSG_NOSIGNAL) < 0)
        _exit(0); /* the test is gone */
}

void reply_errno(void) { reply(-1, "errno %d", errno); }

void reply_signal(const struct trap *trap)
{
    reply(-1, "signal %d %d %lu", trap->signo, trap->code, trap->addr);
}

static void reply_result(int failed)
{
    if (failed)
        reply_errno();
    else
        reply(-1, "ok");
}

/* Memory */

static void attach(const uint64_t *arg) /* fd, address, prot, flags, offset, size */
{
    const unsigned reads = arg[2] & PROT_WRITE ? 0 : MSHARE_ATTACH_READ;
    void *base = mshare_attach((int)arg[0], (off_t)arg[4], arg[5], (void *)arg[1],
                               ((unsigned)arg[3] & ~(unsigned)MAP_SHARED) | reads);

    if (base == MAP_FAILED)
        reply_errno();
    else
        reply(-1, "ok %lu", (uintptr_t)base);
}

static void detach(const uint64_t *arg) { reply_result(mshare_detach((void *)arg[0])); }

static void map(const uint64_t *arg) /* fd, offset, size, prot */
{
    reply_result(mshare_map((int)arg[0], (off_t)arg[1], arg[2], (int)arg[3],
                            MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, -1, 0));
}

static void map_from(const uint64_t *arg) /* fd, offset, size, prot, address, flags, object */
{
    const int flags = (int)arg[5] | MAP_SHARED | MAP_FIXED | (int)MSHARE_MAP_FROM;

    reply_result(mshare_map((int)arg[0], (off_t)arg[1], arg[2], (int)arg[3], flags, (int)arg[6] - 1,
                            (off_t)arg[4]));
}

static void unmap(const uint64_t *arg) /* fd, offset, size */
{
    reply_result(mshare_unmap((int)arg[0], (off_t)arg[1], arg[2]));
}

static void protect(const uint64_t *arg) /* fd, offset, size, prot */
{
    reply_result(mshare_protect((int)arg[0], (off_t)arg[1], arg[2], (int)arg[3]));
}

static void advise(const uint64_t *arg) /* fd, offset, size, advice */
{
    reply_result(mshare_advise((int)arg[0], (off_t)arg[1], arg[2], (int)arg[3]));
}

static void plain_map(const uint64_t *arg) /* address, size, prot, flags, fd, offset */
{
    void *base = mmap((void *)arg[0], arg[1], (int)arg[2], (int)arg[3], (int)arg[4], (off_t)arg[5]);

    if (base == MAP_FAILED)
        reply_errno();
    else
        reply(-1, "ok %lu", (uintptr_t)base);
}

static void plain_unmap(const uint64_t *arg) /* address, size */
{
    reply_result(munmap((void *)arg[0], arg[1]));
}

static void plain_protect(const uint64_t *arg) /* address, size, prot */
{
    reply_result(mprotect((void *)arg[0], arg[1], (int)arg[2]));
}

static void plain_advise(const uint64_t *arg) /* address, size, advice */
{
    reply_result(madvise((void *)arg[0], arg[1], (int)arg[2]));
}

/* A System V segment of this size, which is gone when nobody has it any more. */
static void segment(const uint64_t *arg) /* address, size, id or 0 for a new one */
{
    int id = arg[2] ? (int)arg[2] - 1 : shmget(IPC_PRIVATE, arg[1], 0600);

    if (id < 0 || shmat(id, (void *)arg[0], 0) == (void *)-1) {
        reply_errno();
        return;
    }
    shmctl(id, IPC_RMID, NULL);
    reply(-1, "ok %d", id + 1);
}

static void load(const uint64_t *arg) /* address */
{
    struct trap trap;

    if (TRY(trap))
        reply(-1, "ok %u", *(volatile uint8_t *)arg[0]);
    else
        reply_signal(&trap);
    trap_current = NULL;
}

static void run(const uint64_t *arg) /* address of code */
{
    struct trap trap;

    if (TRY(trap)) {
        ((void (*)(void))(uintptr_t)arg[0])();
        reply(-1, "ok");
    } else {
        reply_signal(&trap);
    }
    trap_current = NULL;
}

static void store(const uint64_t *arg) /* address, value */
{
    struct trap trap;

    if (TRY(trap)) {
        *(volatile uint8_t *)arg[0] = (uint8_t)arg[1];
        reply(-1, "ok");
    } else {
        reply_signal(&trap);
    }
    trap_current = NULL;
}

/* Loads a byte of each page, in order; for a refused load, the signal's code, negative. */
static void look(const uint64_t *arg) /* address, pages */
{
    char found[REPLY_MAX - 16];
    volatile int length = 0;

    for (volatile uint64_t i = 0; i < arg[1] && length < (int)sizeof found - 16; i++) {
        volatile int value;
        struct trap trap;

        if (TRY(trap))
            value = *(volatile uint8_t *)(arg[0] + i * PAGE);
        else
            value = -trap.code;
        trap_current = NULL;
        length += snprintf(found + length, sizeof found - (size_t)length, " %d", value);
    }
    reply(-1, "ok%s", found);
}

/* Without a handler: the process ends as the kernel ends it, and its parent sees that. */
static void load_and_die(const uint64_t *arg) /* address */
{
    (void)*(volatile uint8_t *)arg[0];
    reply(-1, "ok");
}

static struct {
    int fd; /* a region, or -1: plain memory */
    uintptr_t base;
    volatile unsigned times;
} repair;

static bool map_and_return(uintptr_t addr)
{
    uintptr_t page = addr & ~(PAGE - 1);
    int flags = MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS;

    repair.times++;
    if (repair.fd >= 0)
        return !mshare_map(repair.fd, (off_t)(page - repair.base), PAGE, PROT_READ | PROT_WRITE,
                           flags, -1, 0);
    return mmap((void *)page, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
}

/* A program that maps memory wherever its handler hears that some is missing. */
static void store_with_repair(const uint64_t *arg) /* address, value, base, fd */
{
    volatile uint8_t *byte = (volatile uint8_t *)arg[0];

    repair.base = arg[2];
    repair.fd = (int)arg[3];
    repair.times = 0;
    trap_repair = map_and_return;
    *byte = (uint8_t)arg[1];
    trap_repair = NULL;
    reply(-1, "ok %u %u", *byte, repair.times);
}

static uint64_t word(uint64_t seed, uint64_t page, uint64_t i)
{
    return (seed << 48) ^ (page << 16) ^ i;
}

/* A page's words depend on the seed, and on its number from `number` on. */
static void fill(const uint64_t *arg) /* address, bytes, seed, number */
{
    volatile uint64_t *at = (volatile uint64_t *)arg[0];
    struct trap trap;

    if (TRY(trap)) {
        for (uint64_t i = 0; i < arg[1] / sizeof *at; i++)
            at[i] = word(arg[2], arg[3] + i / WORDS, i % WORDS);
        reply(-1, "ok");
    } else {
        reply_signal(&trap);
    }
    trap_current = NULL;
}

static void check(const uint64_t *arg) /* as fill; ok: how many words are wrong */
{
    const volatile uint64_t *at = (const volatile uint64_t *)arg[0];
    volatile uint64_t wrong = 0;
    struct trap trap;

    if (TRY(trap)) {
        for (uint64_t i = 0; i < arg[1] / sizeof *at; i++)
            wrong += at[i] != word(arg[2], arg[3] + i / WORDS, i % WORDS);
        reply(-1, "ok %lu", wrong);
    } else {
        reply_signal(&trap);
    }
    trap_current = NULL;
}

/* System calls on memory */

static void read_into(const uint64_t *arg) /* address, bytes; the bytes read are 0x5a */
{
    char *source = malloc(arg[1]);
    int fd = memfd_create("source", MFD_CLOEXEC);

    memset(source, 0x5a, arg[1]);
    if (write(fd, source, arg[1]) != (ssize_t)arg[1] || lseek(fd, 0, SEEK_SET))
        _exit(3);
    ssize_t got = read(fd, (void *)arg[0], arg[1]);
    if (got < 0)
        reply_errno();
    else
        reply(-1, "ok %zd", got);
    close(fd);
    free(source);
}

static void write_from(const uint64_t *arg) /* address, bytes; ok: bytes written, their sum */
{
    uint8_t *copy = calloc(1, arg[1]);
    int fd = memfd_create("target", MFD_CLOEXEC);
    ssize_t put = write(fd, (void *)arg[0], arg[1]);
    uint64_t sum = 0;

    if (put < 0) {
        reply_errno();
    } else {
        if (pread(fd, copy, (size_t)put, 0) != put)
            _exit(3);
        for (ssize_t i = 0; i < put; i++)
            sum += copy[i];
        reply(-1, "ok %zd %lu", put, sum);
    }
    close(fd);
    free(copy);
}

/* The process */

/* The child's own socket goes to the test. First of all the child loads from an address or
 * detaches, and that is its first answer. */
static void fork_child(const uint64_t *arg) /* address or 0, detach; ok: pid, and a socket */
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return reply_errno();
    pid_t pid = fork();
    if (pid < 0)
        return reply_errno();
    if (pid) {
        reply(pair[0], "ok %d", pid);
        close(pair[0]);
        close(pair[1]);
        return;
    }
    close(channel);
    channel = pair[1];
    if (arg[0] && arg[1])
        detach(arg);
    else if (arg[0])
        load(arg);
    else
        reply(-1, "ok");
    close(pair[0]);
}

/* The usual way to start a program: vfork() underneath. */
static void spawn(const uint64_t *arg)
{
    char *argv[] = {"true", NULL}, *envp[] = {NULL};
    pid_t pid;
    int status;

    (void)arg;
    errno = posix_spawn(&pid, "/bin/true", NULL, NULL, argv, envp);
    if (errno || waitpid(pid, &status, 0) < 0)
        return reply_errno();
    reply(-1, "ok %d", status);
}

static void wait_child(const uint64_t *arg) /* pid; ok: status */
{
    int status;

    if (waitpid((pid_t)arg[0], &status, 0) < 0)
        reply_errno();
    else
        reply(-1, "ok %d", status);
}

/* A process by the number that this one knows it by. */
static void kill_child(const uint64_t *arg) /* pid; ok: status */
{
    if (kill((pid_t)arg[0], SIGKILL))
        reply_errno();
    else
        wait_child(arg);
}

/* Nobody will wait for a descendant: one without a parent becomes ours, and vanishes at its end. */
static void disown(const uint64_t *arg)
{
    (void)arg;
    signal(SIGCHLD, SIG_IGN);
    reply_result(prctl(PR_SET_CHILD_SUBREAPER, 1));
}

/* Becomes a new actor; its first answer is "ok". */
static void exec_again(const uint64_t *arg)
{
    char number[16];
    char *argv[] = {program, number, "again", NULL};

    (void)arg;
    snprintf(number, sizeof number, "%d", channel);
    fcntl(channel, F_SETFD, 0);
    execv("/proc/thread-self/exe", argv);
    reply_errno();
}

static void set_user(const uint64_t *arg) /* user, group */
{
    reply_result(setresgid((gid_t)arg[1], (gid_t)arg[1], (gid_t)arg[1]) ||
                 setresuid((uid_t)arg[0], (uid_t)arg[0], (uid_t)arg[0]));
}

static void leave_namespace(const uint64_t *arg) /* CLONE_NEW* */
{
    reply_result(unshare((int)arg[0]));
}

/* In a mount namespace of its own: none of the test's files can be reached by path. */
static void hide_shm(const uint64_t *arg)
{
    (void)arg;
    reply_result(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
                 mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL));
}

static void lock_all(const uint64_t *arg) /* MCL_* */ { reply_result(mlockall((int)arg[0])); }

static void take(const uint64_t *arg)
{
    (void)arg;
    reply(-1, "ok %d", received);
    received = -1;
}

static void close_fd(const uint64_t *arg) { reply_result(close((int)arg[0])); }

static void leave(const uint64_t *arg) { exit((int)arg[0]); }

static void leave_main(const uint64_t *arg);

static const struct {
    const char *name;
    void (*run)(const uint64_t *arg);
} commands[] = {
    {"attach", attach},
    {"detach", detach},
    {"map", map},
    {"map-from", map_from},
    {"unmap", unmap},
    {"protect", protect},
    {"advise", advise},
    {"plain-map", plain_map},
    {"plain-unmap", plain_unmap},
    {"plain-protect", plain_protect},
    {"plain-advise", plain_advise},
    {"segment", segment},
    {"load", load},
    {"store", store},
    {"run", run},
    {"look", look},
    {"load-and-die", load_and_die},
    {"store-with-repair", store_with_repair},
    {"fill", fill},
    {"check", check},
    {"read", read_into},
    {"write", write_from},
    {"fork", fork_child},
    {"spawn", spawn},
    {"wait", wait_child},
    {"kill", kill_child},
    {"disown", disown},
    {"exec", exec_again},
    {"setuser", set_user},
    {"unshare", leave_namespace},
    {"hide-shm", hide_shm},
    {"take", take},
    {"mlockall", lock_all},
    {"leave-main", leave_main},
    {"close", close_fd},
    {"exit", leave},
    {"hammer", crowd_hammer},
    {"gaze", crowd_gaze},
    {"flood", crowd_flood},
    {"holes", crowd_holes},
    {"join", crowd_join},
    {"echo", echo_count},
    {"call", echo_call},
    {"budget", churn_budget},
    {"stamp", churn_stamp},
    {"visit", churn_visit},
    {"play", churn_play},
    {"add", churn_add},
    {"poke", churn_poke},
};

static void obey(char *line)
{
    uint64_t arg[ARGS_MAX] = {0};
    char *name = strtok(line, " "), *number;

    for (unsigned i = 0; i < ARGS_MAX && (number = strtok(NULL, " ")); i++)
        arg[i] = (uint64_t)strtoll(number, NULL, 0);
    for (unsigned i = 0; name && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(commands[i].name, name))
            return commands[i].run(arg);
    reply(-1, "errno %d", ENOSYS);
}

static ssize_t receive(char *line, size_t size)
{
    char space[CMSG_SPACE(sizeof received)];
    struct iovec part = {line, size};
    struct msghdr head = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    ssize_t got = recvmsg(channel, &head, MSG_CMSG_CLOEXEC);
    struct cmsghdr *cmsg = got > 0 ? CMSG_FIRSTHDR(&head) : NULL;

    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
        memcpy(&received, CMSG_DATA(cmsg), sizeof received);
    return got;
}

static void *serve(void *unused)
{
    char line[256];
    ssize_t got;

    (void)unused;
    while ((got = receive(line, sizeof line - 1)) > 0) {
        line[got] = 0;
        obey(line);
    }
    exit(0);
}

/* The first thread ends, another goes on: the process looks like a zombie to many. */
static void leave_main(const uint64_t *arg)
{
    pthread_t thread;

    (void)arg;
    errno = pthread_create(&thread, NULL, serve, NULL);
    if (errno)
        return reply_errno();
    reply(-1, "ok");
    pthread_exit(NULL);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    program = argv[0];
    channel = atoi(argv[1]);
    fcntl(channel, F_SETFD, FD_CLOEXEC);
    trap_install();
    if (argc > 2)
        reply(-1, "ok");
    serve(NULL);
}
