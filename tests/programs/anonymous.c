/*
 * anonymous.c ROW: what a program may do with shared memory that it makes for itself and its
 * children. Exits with 0 if all is as Linux's manual pages say. With no ROW: the names of all, one
 * a line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define SIZE (8ul << 20)
#define READ_WRITE (PROT_READ | PROT_WRITE)
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

static char *shared_at(void *addr, size_t size, int flags)
{
    char *got = mmap(addr, size, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);

    return got == MAP_FAILED ? NULL : got;
}

static char *shared(void) { return shared_at(NULL, SIZE, 0); }

static sigjmp_buf jump;

static void on_fault(int number) { siglongjmp(jump, number); }

/* The signal that a load gets; 0: none. */
static int fault(const volatile char *at)
{
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    int number;

    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    number = sigsetjmp(jump, 1);
    if (!number)
        (void)*at;
    return number;
}

static size_t resident(char *at, size_t size)
{
    static unsigned char pages[SIZE / PAGE];
    size_t found = 0;

    if (mincore(at, size, pages))
        return 0;
    for (size_t i = 0; i < size / PAGE; i++)
        found += pages[i] & 1;
    return found;
}

static int status_of(pid_t child)
{
    int status;

    return waitpid(child, &status, 0) == child ? status : -1;
}

static long field(const char *name)
{
    char line[256];
    long found = -1;
    FILE *status = fopen("/proc/self/status", "r");

    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, name, strlen(name)))
            found = atol(line + strlen(name) + 1);
    if (status)
        fclose(status);
    return found;
}

/* Descriptors below 1024 that are open. */
static int open_descriptors(void)
{
    int found = 0;

    for (int fd = 0; fd < 1024; fd++)
        found += fcntl(fd, F_GETFD) >= 0;
    return found;
}

static bool guard_pages(void)
{
    char *p = shared();

    if (madvise(p + PAGE, PAGE, MADV_GUARD_INSTALL))
        return false;
    for (size_t i = 0; i < 64; i++)
        if (i != 1)
            p[i * PAGE] = 1;
    if (fault(p + PAGE) != SIGSEGV || madvise(p + PAGE, PAGE, MADV_GUARD_REMOVE))
        return false;
    return !fault(p + PAGE);
}

static bool populated(void)
{
    char *p = shared_at(NULL, SIZE, MAP_POPULATE);

    return p && resident(p, SIZE) == SIZE / PAGE;
}

static bool locked_ahead(void)
{
    return !mlockall(MCL_FUTURE) && resident(shared(), SIZE) == SIZE / PAGE && field("VmLck:") > 0;
}

static bool own_userfaultfd(void)
{
    char *p = shared(), *source = mmap(NULL, PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {{(unsigned long)p, SIZE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    struct uffdio_copy copy = {(unsigned long)p, (unsigned long)source, PAGE, 0, 0};

    *source = 7;
    return !ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &range) &&
           !ioctl(uffd, UFFDIO_COPY, &copy) && *p == 7;
}

static bool pages_remapped(void)
{
    char *p = shared();

    p[0] = 1, p[PAGE] = 2;
    return !remap_file_pages(p, PAGE, 0, 1, 0) && p[0] == 2 &&
           !remap_file_pages(p + PAGE, PAGE, 0, 0, 0) && p[PAGE] == 1;
}

static bool where_asked(void)
{
    char *hint = (char *)(1ul << 45) + 3 * PAGE;

    if (shared_at(hint, SIZE, 0) != hint || shared_at(hint, SIZE, MAP_FIXED_NOREPLACE) ||
        errno != EEXIST)
        return false;
    return shared_at(hint + PAGE, SIZE, MAP_FIXED) == hint + PAGE && !hint[0] && !hint[SIZE];
}

static bool where_nothing_may_be(void)
{
    const bool unaligned = !shared_at((char *)1, SIZE, MAP_FIXED) && errno == EINVAL;

    return unaligned && !shared_at((char *)(1ul << 63), SIZE, MAP_FIXED) && errno == ENOMEM;
}

static bool an_offset(void)
{
    const int flags = MAP_SHARED | MAP_ANONYMOUS;
    char *p;

    if (mmap(NULL, SIZE, READ_WRITE, flags, -1, 123) != MAP_FAILED || errno != EINVAL)
        return false;
    errno = 0;
    p = mmap(NULL, SIZE, READ_WRITE, flags, -1, 3 * PAGE); /* it means nothing */
    return p != MAP_FAILED && !errno && !fault(p + SIZE - 1);
}

static bool more_than_there_is(void)
{
    const size_t size = 1ul << 45;
    const bool refused = !shared_at(NULL, size, 0) && errno == ENOMEM;
    char *p = shared_at(NULL, size, MAP_NORESERVE);

    return refused && p && !(p[size - 1] = 0);
}

static bool swept_descriptors(void)
{
    const int before = open_descriptors();
    char *p = shared();
    bool fine = open_descriptors() == before;

    for (int fd = 3; fd < 1024; fd++)
        fine &= close(fd) == 0 || errno == EBADF;
    p[0] = 1;
    pid_t child = fork();
    if (!child)
        _exit(dup(0) != 3 || p[0] != 1 || (p[SIZE - 1] = 2) != 2);
    return fine && !status_of(child) && p[SIZE - 1] == 2;
}

static bool one_thread(void)
{
    char *p = shared();

    p[0] = 1;
    return field("Threads:") == 1;
}

static bool few_processes(void)
{
    struct rlimit none = {5, 5};
    char *p = shared();

    if (setrlimit(RLIMIT_NOFILE, &none))
        return false;
    pid_t child = fork();
    if (!child)
        _exit((p[PAGE] = 3) != 3);
    return !status_of(child) && p[PAGE] == 3;
}

static bool bare_children(void)
{
    char *p = shared();
    pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

    if (!child)
        syscall(SYS_exit_group, (p[0] = 4) != 4);
    if (status_of(child) || p[0] != 4)
        return false;
    return true;
}

static bool vfork_child(void)
{
    char *volatile p = shared();
    pid_t child = vfork();

    if (!child)
        _exit((p[PAGE] = 5) != 5);
    return !status_of(child) && p[PAGE] == 5;
}

static void *other(void *p)
{
    usleep(10000);
    *(char *)p = 6;
    exit(*(char *)p != 6);
}

static bool main_ends(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, other, shared());
    pthread_exit(NULL);
}

static bool strict_seccomp(void)
{
    char *p = shared();
    pid_t child = fork();

    if (!child) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
            _exit(2);
        p[3 * PAGE] = 7;
        syscall(SYS_exit, p[3 * PAGE] != 7);
    }
    return !status_of(child) && p[3 * PAGE] == 7;
}

/* What it maps then stays plain: the filter may allow no other calls. */
static bool mapped_under_a_filter(void)
{
    struct sock_filter allow[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socketpair, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof allow / sizeof *allow, allow};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
        return false;
    return !*shared();
}

static bool user_namespace(void)
{
    char *p = shared();

    p[0] = 1;
    return !unshare(CLONE_NEWUSER);
}

static bool read_while_stopped(void)
{
    char *p = shared(), got[2] = {9, 9};
    pid_t child = fork();

    if (!child)
        for (;;)
            pause();
    p[0] = 8;
    kill(child, SIGSTOP);
    waitpid(child, NULL, WUNTRACED);
    const struct iovec to = {got, 2}, from[] = {{p, 1}, {p + SIZE - 1, 1}};
    const bool fine = process_vm_readv(child, &to, 1, from, 2, 0) == 2 && got[0] == 8 && !got[1];
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return fine;
}

static bool replaced_under_a_reader(void)
{
    char *p = shared();
    pid_t child;

    for (int i = 0; i < 200; i++) {
        child = 0;
        if (shared_at(p, SIZE, MAP_FIXED) != p || p[0])
            return false;
        p[0] = 1;
    }
    child = fork();
    if (!child)
        _exit(p[0] != 1);
    return !status_of(child);
}

static bool past_its_end(void)
{
    char *p = shared();
    char *grown = mremap(p, SIZE, SIZE + 2 * PAGE, MREMAP_MAYMOVE);

    return grown != MAP_FAILED && !fault(grown + SIZE - 1) && fault(grown + SIZE) == SIGBUS;
}

/* core(5): a mapping of a file without a name counts as anonymous. */
static bool without_a_name(void)
{
    char path[80], *p = shared();
    struct stat file;

    snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (unsigned long)p,
             (unsigned long)(p + SIZE));
    return !stat(path, &file) && !file.st_nlink;
}

static bool paged_out(void)
{
    char *p = shared();

    memset(p, 1, SIZE);
    return !madvise(p, SIZE, MADV_PAGEOUT) && !madvise(p, SIZE, MADV_COLD) && p[SIZE - 1] == 1;
}

static const struct row {
    const char *name;
    bool (*holds)(void);
} rows[] = {
    {"guard pages", guard_pages},
    {"populated", populated},
    {"locked ahead", locked_ahead},
    {"own userfaultfd", own_userfaultfd},
    {"pages remapped", pages_remapped},
    {"where asked", where_asked},
    {"where nothing may be", where_nothing_may_be},
    {"an offset", an_offset},
    {"more than there is", more_than_there_is},
    {"swept descriptors", swept_descriptors},
    {"one thread", one_thread},
    {"few descriptors", few_processes},
    {"bare children", bare_children},
    {"vfork child", vfork_child},
    {"main ends", main_ends},
    {"strict seccomp", strict_seccomp},
    {"user namespace", user_namespace},
    {"mapped under a filter", mapped_under_a_filter},
    {"read while stopped", read_while_stopped},
    {"replaced", replaced_under_a_reader},
    {"past its end", past_its_end},
    {"without a name", without_a_name},
    {"paged out", paged_out},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (argc == 1)
            puts(rows[i].name);
        else if (!strcmp(argv[1], rows[i].name))
            return !rows[i].holds();
    return argc > 1 ? 2 : 0;
}
