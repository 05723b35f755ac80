/*
 * confine.c - the rights of a shadow; see confine.h.
 *
 * A filter of system calls sees numbers, not what a pointer points to, and the program could
 * change that. Where it matters the filter asks for a number that leaves no choice: connect(2)
 * for one pointer, to an address in a sealed mapping of a sealed file; statx(2) for no path at
 * all; clone(2) for the flags of a thread, or of a shadow, which is as confined as its mother.
 */
#define _GNU_SOURCE
#include "client/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/arrange.h"
#include "client/birth.h"
#include "core/layout.h"
#include "core/procmap.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

/* A program knows few servers; one more than these stays away after its server's restart. */
#define SERVERS_MAX 64u

static const struct sockaddr_un *servers[SERVERS_MAX];

/* A page of a file that can only be read, for ever, mapped where it can only be read. */
static const struct sockaddr_un *make(const struct sockaddr_un *addr)
{
    const int fd = memfd_create("msharefs-server", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    void *page = MAP_FAILED;

    if (fd < 0)
        return NULL;
    if (!ftruncate(fd, (off_t)PAGE_SIZE) && pwrite(fd, addr, sizeof *addr, 0) == sizeof *addr &&
        !fcntl(fd, F_ADD_SEALS, seals))
        page = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED)
        return NULL;
    madvise(page, PAGE_SIZE, MADV_DONTDUMP);
    if (!syscall(SYS_mseal, page, PAGE_SIZE, 0ul))
        return page;
    munmap(page, PAGE_SIZE);
    return NULL;
}

const void *confine_address(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    unsigned i = 0;

    if (strlen(path) >= sizeof addr.sun_path)
        return NULL;
    strcpy(addr.sun_path, path);
    for (; i < SERVERS_MAX && servers[i]; i++)
        if (!memcmp(servers[i], &addr, sizeof addr))
            return servers[i];
    if (i < SERVERS_MAX)
        servers[i] = make(&addr);
    return i < SERVERS_MAX ? servers[i] : NULL;
}

#define SOCKET_TYPE (SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)

int confine_connect(const void *address)
{
    const int sock = address ? socket(AF_UNIX, SOCKET_TYPE, 0) : -1;

    if (sock < 0)
        return address ? -errno : -EDESTADDRREQ;
    if (connect(sock, address, sizeof(struct sockaddr_un))) {
        const int err = -errno;

        close(sock);
        return err;
    }
    return sock;
}

#define DATA(member) ((uint32_t)offsetof(struct seccomp_data, member))
#define LOAD(at) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(at))
#define IF(value, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, otherwise)
#define ANSWER(action) BPF_STMT(BPF_RET | BPF_K, (uint32_t)(action))
#define ALLOW(call) IF(SYS_##call, 1), ANSWER(SECCOMP_RET_ALLOW)
/* Asks for one argument more: all its 64 bits, or, for an int, the lower half. */
#define ARG(n) (DATA(args) + 8 * (n))
#define LONG(n, value, otherwise)                                           \
    LOAD(ARG(n)), IF((uint64_t)(value), (otherwise) + 2), LOAD(ARG(n) + 4), \
        IF((uint64_t)(value) >> 32, otherwise)
#define INT(n, value, otherwise) LOAD(ARG(n)), IF(value, otherwise)
#define REFUSE ANSWER(SECCOMP_RET_ERRNO | EPERM)

/* The kernel tries a new filter with the number of every system call, which took 0.1 ms. It does
 * not try one with an instruction that it knows no constant result of: such a one is the first. */
#define UNTRIED BPF_STMT(BPF_MISC | BPF_TAX, 0)
/* In two lists, so that most calls are decided early. */
#define LOW 64
#define HIGHEST SYS_statx

static int filter(const void *address)
{
    const uintptr_t allowed = address ? (uintptr_t)address : UINTPTR_MAX; /* that is nowhere */
    const struct sock_filter low[] = {
        ALLOW(read),
        ALLOW(close),
        ALLOW(poll),
        ALLOW(lseek), /* entries of pages that Linux has filled */
        ALLOW(mmap),
        ALLOW(mprotect),
        ALLOW(munmap),
        ALLOW(rt_sigreturn),
        ALLOW(pread64),
        ALLOW(sched_yield),
        ALLOW(mremap),
        ALLOW(madvise),
        ALLOW(nanosleep),
        ALLOW(getpid),
        ALLOW(sendmsg),
        ALLOW(recvmsg),
        ALLOW(exit),
        /* The calls of a userfaultfd, and one that only looks. */
        IF(SYS_ioctl, 6),
        LOAD(ARG(1)),
        IF(PROCMAP_QUERY_CALL, 1),
        ANSWER(SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff00),
        IF(UFFDIO << 8, 1),
        ANSWER(SECCOMP_RET_ALLOW),
        LOAD(DATA(nr)),
        IF(SYS_clone, 7),
        INT(0, ARRANGE_CLONE, 1),
        ANSWER(SECCOMP_RET_ALLOW),
        INT(0, BIRTH_CLONE, 1),
        ANSWER(SECCOMP_RET_ALLOW),
        REFUSE,
        IF(SYS_socket, 6),
        INT(0, AF_UNIX, 3),
        INT(1, SOCKET_TYPE, 1),
        ANSWER(SECCOMP_RET_ALLOW),
        REFUSE,
        IF(SYS_socketpair, 4),
        INT(0, AF_UNIX, 1),
        ANSWER(SECCOMP_RET_ALLOW),
        REFUSE,
        IF(SYS_connect, 7),
        LONG(1, allowed, 3),
        INT(2, sizeof(struct sockaddr_un), 1),
        ANSWER(SECCOMP_RET_ALLOW),
        REFUSE,
    };
    const struct sock_filter high[] = {
        ALLOW(munlock),
        ALLOW(gettid),
        ALLOW(futex),
        ALLOW(restart_syscall),
        ALLOW(clock_gettime),
        ALLOW(clock_nanosleep),
        ALLOW(exit_group),
        ALLOW(ppoll),
        ALLOW(fallocate),
        ALLOW(userfaultfd),
        IF(SYS_unshare, 6), /* which changes nothing, and says whether nobody else has our memory */
        LONG(0, CLONE_VM, 1),
        ANSWER(SECCOMP_RET_ALLOW),
        REFUSE,
        IF(SYS_statx, 5),
        LONG(1, 0, 1),
        ANSWER(SECCOMP_RET_ALLOW),
        REFUSE,
    };
    const struct sock_filter head[] = {
        UNTRIED,
        LOAD(DATA(arch)),
        IF(AUDIT_ARCH_X86_64, 2),
        LOAD(DATA(nr)),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, HIGHEST, 0, 1),
        REFUSE,
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, LOW, sizeof low / sizeof *low, 0),
    };
    struct sock_filter code[(sizeof head + sizeof low + sizeof high) / sizeof *head];
    const struct sock_fprog program = {sizeof code / sizeof *code, code};

    memcpy(code, head, sizeof head);
    memcpy((char *)code + sizeof head, low, sizeof low);
    memcpy((char *)code + sizeof head + sizeof low, high, sizeof high);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) ? -errno : 0;
}

int confine(const void *address)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

    if (syscall(SYS_capset, &head, none) ||
        syscall(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1ul, 0ul, 0ul, 0ul))
        return -errno;
    return filter(address);
}
