/*
 * unseen.c - what a program may do to itself, with shared memory in use: unseen HOW [REGION].
 *
 * Exits with 0 if all went as Linux has it; otherwise says what did not. Without REGION the memory
 * is a plain shared mapping: the same must pass there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "msharefs.h"

#define BYTES (2ul << 20)
#define PAGE 4096ul

static volatile char *memory;
static const char *how;
static bool attached;

static void must(int right, const char *what)
{
    if (right)
        return;
    fprintf(stderr, "unseen: %s: %s (%s)\n", how, what, strerror(errno));
    exit(1);
}

static void map(const char *region)
{
    int fd = -1;

    if (!region) {
        memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    } else {
        fd = open(region, O_RDWR);
        must(fd >= 0, "open");
        attached = true;
        memory = mshare_attach(fd, 0, 0, NULL, 0);
        close(fd);
    }
    must(memory != MAP_FAILED, "map");
    memory[0] = 1;
}

static int children(void)
{
    int status, bad = 0;

    while (wait(&status) > 0)
        bad |= status;
    return bad;
}

static int threads(void)
{
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");

    for (const struct dirent *each; (each = readdir(tasks));)
        count += each->d_name[0] != '.';
    closedir(tasks);
    return count;
}

static void *late(void *unused)
{
    usleep(100000);
    memory[7 * PAGE] = 7;
    return unused;
}

static void end_main_first(void)
{
    const pid_t child = fork();
    pthread_t thread;

    if (!child) {
        must(!pthread_create(&thread, NULL, late, NULL), "pthread_create");
        pthread_exit(NULL);
    }
    must(!children(), "a program whose first thread ends first");
    must(memory[7 * PAGE] == 7, "its other thread's store");
}

static void raw_exit(void)
{
    if (!fork()) {
        memory[PAGE] = 1;
        syscall(SYS_exit, 0);
    }
    must(!children(), "exit(2) of the only thread");
}

static void alone(void)
{
    must(threads() == 1, "there are threads");
    must(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD, "there is a child");
    if (!fork()) {
        memory[PAGE] = 1;
        must(threads() == 1, "there are threads in a child");
        _exit(0);
    }
    must(!children(), "a child");
}

static void no_descriptor(void)
{
    const int lowest = dup(0);

    close(lowest);
    must(lowest == 3, "the lowest free descriptor");
    must(!close_range(3, ~0u, 0), "close_range");
    memory[2 * PAGE] = 2;
    if (!fork()) {
        must(dup(0) == 3, "the lowest free descriptor of a child");
        must(!close_range(3, ~0u, 0), "close_range");
        memory[3 * PAGE] = memory[2 * PAGE] + 1;
        if (!fork())
            _exit(memory[3 * PAGE] != 3);
        _exit(children());
    }
    must(!children() && memory[3 * PAGE] == 3, "a child without descriptors");
    for (int fd = 0; fd < 1024; fd++)
        close(fd);
    memory[4 * PAGE] = 4;
}

static void few_descriptors(void)
{
    const struct rlimit few = {5, 16};

    must(!setrlimit(RLIMIT_NOFILE, &few), "setrlimit");
    if (!fork()) {
        memory[PAGE] = 1;
        if (!fork()) {
            memory[2 * PAGE] = 2;
            _exit(0);
        }
        _exit(children());
    }
    must(!children() && memory[2 * PAGE] == 2, "children with few descriptors");
}

static void own_namespaces(void)
{
    must(!unshare(CLONE_NEWUSER | CLONE_NEWNET), "unshare");
    memory[PAGE] = 1;
    must(memory[PAGE] == 1, "a store afterwards");
}

static void forbidden(void)
{
    /* Nothing but the end, and what libc needs for it. */
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    const struct sock_fprog filter = {sizeof code / sizeof *code, code};

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    must(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter),
         "seccomp");
    for (unsigned long page = 0; page < BYTES / PAGE; page += 16)
        memory[page * PAGE] = 1;
    _exit(0);
}

/* No new process in this memory; threads and fork(2) as ever. */
static void forbid_processes(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 16), /* the lower half of its flags */
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, CLONE_VM | CLONE_THREAD),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CLONE_VM, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog filter = {sizeof code / sizeof *code, code};

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    must(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter), "seccomp");
}

static void two_generations(void)
{
    memory[PAGE] = 1;
    if (!fork()) {
        memory[2 * PAGE] = memory[PAGE];
        if (!fork()) {
            memory[3 * PAGE] = memory[2 * PAGE];
            _exit(0);
        }
        _exit(children());
    }
    must(!children() && memory[3 * PAGE] == 1, "children and theirs");
}

static void no_process_later(void)
{
    forbid_processes();
    two_generations();
}

/* Children, under a filter that kills who calls anything else: nothing that is opened. */
static void forbidden_later(void)
{
    static const int allowed[] = {
        SYS_clone,     SYS_wait4,      SYS_exit_group,      SYS_write,          SYS_futex,
        SYS_mmap,      SYS_munmap,     SYS_mprotect,        SYS_madvise,        SYS_brk,
        SYS_getpid,    SYS_gettid,     SYS_getppid,         SYS_rt_sigprocmask, SYS_rt_sigaction,
        SYS_close,     SYS_rseq,       SYS_set_robust_list, SYS_clock_gettime,  SYS_exit,
        SYS_nanosleep, SYS_sched_yield};
    enum { COUNT = sizeof allowed / sizeof *allowed };
    struct sock_filter code[2 * COUNT + 2] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0)};
    const struct sock_fprog filter = {sizeof code / sizeof *code, code};

    for (unsigned i = 0; i < COUNT; i++) {
        code[2 * i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
                                                       (unsigned)allowed[i], 0, 1);
        code[2 * i + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    code[2 * COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    must(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter), "seccomp");
    two_generations();
}

/* Room for this process and one more. */
static void few_processes(void)
{
    const rlim_t most = (rlim_t)threads() + 1;
    const struct rlimit few = {most, most};

    must(!setuid(1u << 30 | (uid_t)getpid()), "setuid"); /* which no other process has */
    must(!setrlimit(RLIMIT_NPROC, &few), "setrlimit");
    memory[PAGE] = 1;
    for (int i = 0; i < 3; i++) {
        if (!fork()) {
            memory[2 * PAGE] += memory[PAGE];
            _exit(0);
        }
        must(!children(), "a child");
    }
    must(memory[2 * PAGE] == 3, "what children have written");
}

/* A fork(2) that fails leaves nobody to wait for. */
static void no_child(void)
{
    const struct rlimit none = {(rlim_t)threads(), (rlim_t)threads()};

    memory[PAGE] = 1;
    must(!setuid(1u << 30 | (uid_t)getpid()), "setuid");
    must(!setrlimit(RLIMIT_NPROC, &none), "setrlimit");
    must(fork() < 0 && errno == EAGAIN, "one process too many");
}

static void stopped(void)
{
    char got = 0;
    struct iovec here = {&got, 1}, there = {(void *)(memory + 9 * PAGE), 1};
    int status, there_now[2];

    must(!pipe(there_now), "pipe");
    const pid_t child = fork();
    if (!child && write(there_now[1], "x", 1) == 1) /* fork() has returned here */
        for (;;)
            pause();
    must(read(there_now[0], &got, 1) == 1, "the child's word");
    memory[9 * PAGE] = 9;
    kill(child, SIGSTOP);
    must(waitpid(child, &status, WUNTRACED) == child, "wait");
    alarm(10);
    must(process_vm_readv(child, &here, 1, &there, 1, 0) == 1 && got == 9,
         "another process's look at a stopped one");
    kill(child, SIGKILL);
    children();
}

/* Orphans come to it, and so do its children's shadows. */
static void adopter(void)
{
    siginfo_t left;

    memory[PAGE] = 1;
    for (unsigned long i = 0; i < 3; i++)
        if (!fork()) {
            memory[(2 + i) * PAGE] = memory[PAGE];
            _exit(0);
        }
    alarm(10);
    must(!children() && errno == ECHILD, "children");
    must(memory[2 * PAGE] + memory[3 * PAGE] + memory[4 * PAGE] == 3, "what they have written");
    must(!(attached ? mshare_detach((void *)memory) : munmap((void *)memory, BYTES)), "detach");
    must(waitid(P_ALL, 0, &left, WEXITED | WNOHANG | __WALL) && errno == ECHILD, "what is left");
}

static void replaced(void)
{
    if (!fork()) {
        memory[PAGE] = 1;
        execl("/bin/true", "true", NULL);
        _exit(1);
    }
    must(!children(), "exec");
    memory[PAGE] = 2;
}

/* Goes on as PID 1 of a new namespace, or does not. */
static void be_the_first(void)
{
    must(!unshare(CLONE_NEWPID), "unshare");
    const pid_t first = fork();
    int status;

    if (!first) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        return;
    }
    alarm(10); /* which such a process would not die of */
    must(waitpid(first, &status, 0) == first && !status, "the first process");
    exit(0);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"end-main-first", end_main_first},
    {"raw-exit", raw_exit},
    {"alone", alone},
    {"no-descriptor", no_descriptor},
    {"few-descriptors", few_descriptors},
    {"own-namespaces", own_namespaces},
    {"forbidden", forbidden},
    {"forbidden-later", forbidden_later},
    {"no-process", two_generations},
    {"no-process-later", no_process_later},
    {"few-processes", few_processes},
    {"no-child", no_child},
    {"stopped", stopped},
    {"replaced", replaced},
    {"adopter", adopter},
    {"first-process", adopter},
};

int main(int count, char **argument)
{
    how = count > 1 ? argument[1] : "";
    if (!strcmp(how, "no-process"))
        forbid_processes();
    if (!strcmp(how, "adopter"))
        must(!prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl");
    if (!strcmp(how, "first-process"))
        be_the_first();
    map(count > 2 ? argument[2] : NULL);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(cases[i].name, how)) {
            cases[i].run();
            return 0;
        }
    must(0, "there is no such case");
}
