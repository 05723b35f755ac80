/*
 * misuse.c - what could be done with the rights of another process, if one decided what it does:
 * misuse PID. Makes process PID, which waits in a system call, try other ones, and prints those
 * that are not refused with EPERM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t target;

static void must(int right, const char *what)
{
    if (right)
        return;
    perror(what);
    exit(1);
}

static void stop_next(void)
{
    int status;

    must(waitpid(target, &status, __WALL) == target && WIFSTOPPED(status), "waitpid");
}

/* The registers are those of a thread that has come out of a system call: the instruction is
 * behind it. */
static long call(const struct user_regs_struct *before, long number, const long *args)
{
    struct user_regs_struct regs = *before;

    regs.rip -= 2;
    regs.rax = (unsigned long)number;
    regs.orig_rax = ~0ul;
    regs.rdi = (unsigned long)args[0];
    regs.rsi = (unsigned long)args[1];
    regs.rdx = (unsigned long)args[2];
    regs.r10 = (unsigned long)args[3];
    must(!ptrace(PTRACE_SETREGS, target, 0, &regs), "PTRACE_SETREGS");
    must(!ptrace(PTRACE_SINGLESTEP, target, 0, 0), "PTRACE_SINGLESTEP");
    stop_next();
    must(!ptrace(PTRACE_GETREGS, target, 0, &regs), "PTRACE_GETREGS");
    return (long)regs.rax;
}

int main(int count, char **argument)
{
    const struct {
        const char *name;
        long number, args[4];
    } tries[] = {
        {"open", SYS_open, {0, O_RDONLY, 0, 0}},
        {"openat", SYS_openat, {AT_FDCWD, 0, O_RDONLY, 0}},
        {"openat2", SYS_openat2, {AT_FDCWD, 0, 0, 0}},
        {"open_by_handle_at", SYS_open_by_handle_at, {AT_FDCWD, 0, 0, 0}},
        {"execve", SYS_execve, {0, 0, 0, 0}},
        {"execveat", SYS_execveat, {AT_FDCWD, 0, 0, 0}},
        {"fork", SYS_fork, {0, 0, 0, 0}},
        {"clone", SYS_clone, {SIGCHLD, 0, 0, 0}},
        {"clone, all but a thread", SYS_clone, {CLONE_VM | CLONE_FILES, 0, 0, 0}},
        {"clone3", SYS_clone3, {0, 0, 0, 0}},
        {"kill", SYS_kill, {1, 0, 0, 0}},
        {"tgkill", SYS_tgkill, {1, 1, 0, 0}},
        {"pidfd_send_signal", SYS_pidfd_send_signal, {0, 0, 0, 0}},
        {"pidfd_open", SYS_pidfd_open, {1, 0, 0, 0}},
        {"pidfd_getfd", SYS_pidfd_getfd, {0, 0, 0, 0}},
        {"ptrace", SYS_ptrace, {PTRACE_ATTACH, 1, 0, 0}},
        {"process_vm_writev", SYS_process_vm_writev, {1, 0, 0, 0}},
        {"setuid", SYS_setuid, {0, 0, 0, 0}},
        {"setns", SYS_setns, {0, 0, 0, 0}},
        {"unshare", SYS_unshare, {CLONE_NEWUSER, 0, 0, 0}},
        {"mount", SYS_mount, {0, 0, 0, 0}},
        {"chroot", SYS_chroot, {0, 0, 0, 0}},
        {"bpf", SYS_bpf, {0, 0, 0, 0}},
        {"prctl", SYS_prctl, {15, 0, 0, 0}},
        {"seccomp", SYS_seccomp, {0, 0, 0, 0}},
        {"unlink", SYS_unlink, {0, 0, 0, 0}},
        {"statx of a path", SYS_statx, {AT_FDCWD, 4096, 0, 0}},
        {"socket, internet", SYS_socket, {AF_INET, SOCK_STREAM, 0, 0}},
        {"socket, datagrams", SYS_socket, {AF_UNIX, SOCK_DGRAM, 0, 0}},
        {"connect elsewhere", SYS_connect, {0, 0, sizeof(struct sockaddr_un), 0}},
        {"connect to the stack", SYS_connect, {0, 4096, sizeof(struct sockaddr_un), 0}},
        {"bind", SYS_bind, {0, 0, 0, 0}},
        {"write", SYS_write, {0, 0, 0, 0}},
        {"ioctl of a terminal", SYS_ioctl, {0, 0x5412, 0, 0}},
        {"userfaultfd's ioctl of another kind", SYS_ioctl, {0, 0xab00, 0, 0}},
        {"fcntl", SYS_fcntl, {0, F_SETFL, 0, 0}},
        {"dup2", SYS_dup2, {0, 1, 0, 0}},
        {"shmat", SYS_shmat, {0, 0, 0, 0}},
        {"io_uring_setup", SYS_io_uring_setup, {1, 0, 0, 0}},
    };
    struct user_regs_struct before;

    must(count == 2, "misuse PID");
    target = atoi(argument[1]);
    must(!ptrace(PTRACE_SEIZE, target, 0, 0) && !ptrace(PTRACE_INTERRUPT, target, 0, 0), "ptrace");
    stop_next();
    must(!ptrace(PTRACE_GETREGS, target, 0, &before), "PTRACE_GETREGS");
    for (unsigned i = 0; i < sizeof tries / sizeof *tries; i++) {
        const long got = call(&before, tries[i].number, tries[i].args);

        if (got != -EPERM)
            printf("%s: %ld\n", tries[i].name, got);
    }
    must(!ptrace(PTRACE_SETREGS, target, 0, &before), "PTRACE_SETREGS");
    must(!ptrace(PTRACE_DETACH, target, 0, 0), "PTRACE_DETACH");
    return 0;
}
