/*
 * sys.c - system calls, past the functions of their names; see sys.h. An int goes through
 * syscall(2) as a long, because the kernel reads the whole register.
 */
#define _GNU_SOURCE
#include "preload/sys.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/hidden.h"
#include "preload/ledger.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

#ifndef MADV_GUARD_INSTALL /* Linux 6.13 */
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

long sys_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    register long sixth __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    if ((unsigned long)result < -4095ul)
        return result;
    errno = (int)-result;
    return -1;
}

void *sys_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    void *got = (void *)syscall(SYS_mmap, addr, length, (long)prot, (long)flags, (long)fd, offset);

    if (got != MAP_FAILED && flags & MAP_FIXED && !(flags & MAP_FIXED_NOREPLACE))
        ledger_changed(got, length, LEDGER_MUNMAP);
    return got;
}

/* What a call that changes memory has answered, and that it has. */
static int changed(int failed, const void *addr, size_t length, enum ledger_cause cause)
{
    if (!failed)
        ledger_changed(addr, length, cause);
    return failed;
}

int sys_munmap(void *addr, size_t length)
{
    return changed((int)syscall(SYS_munmap, addr, length), addr, length, LEDGER_MUNMAP);
}

int sys_mprotect(void *addr, size_t length, int prot)
{
    return changed((int)syscall(SYS_mprotect, addr, length, (long)prot), addr, length,
                   LEDGER_MPROTECT);
}

int sys_pkey_mprotect(void *addr, size_t length, int prot, int pkey)
{
    return changed((int)syscall(SYS_pkey_mprotect, addr, length, (long)prot, (long)pkey), addr,
                   length, LEDGER_MPROTECT);
}

void *sys_mremap(void *old, size_t old_size, size_t new_size, int flags, void *to)
{
    void *got = (void *)syscall(SYS_mremap, old, old_size, new_size, (long)flags, to);

    if (got == MAP_FAILED)
        return got;
    if (flags & MREMAP_FIXED)
        ledger_changed(got, new_size, LEDGER_MUNMAP);
    ledger_moved(old, old_size, got, new_size, flags & MREMAP_DONTUNMAP);
    return got;
}

int sys_remap_file_pages(void *addr, size_t size, int prot, size_t page, int flags)
{
    return changed((int)syscall(SYS_remap_file_pages, addr, size, (long)prot, page, (long)flags),
                   addr, size, LEDGER_MREMAP);
}

int sys_mseal(void *addr, size_t length, unsigned long flags)
{
    return (int)syscall(SYS_mseal, addr, length, flags);
}

int sys_madvise(void *addr, size_t length, int advice)
{
    const bool guards = advice == MADV_GUARD_INSTALL || advice == MADV_GUARD_REMOVE;
    const bool drops = advice == MADV_DONTNEED || advice == MADV_DONTNEED_LOCKED ||
                       advice == MADV_REMOVE;
    int failed;

    if (guards && ledger_has(addr, length)) {
        errno = EINVAL;
        return -1;
    }
    failed = (int)syscall(SYS_madvise, addr, length, (long)advice);
    return drops ? changed(failed, addr, length, LEDGER_MADVISE) : failed;
}

int sys_msync(void *addr, size_t length, int flags)
{
    return (int)syscall(SYS_msync, addr, length, (long)flags);
}

int sys_mincore(void *addr, size_t length, unsigned char *vec)
{
    return (int)syscall(SYS_mincore, addr, length, vec);
}

int sys_mlock(const void *addr, size_t length) { return (int)syscall(SYS_mlock, addr, length); }

int sys_mlock2(const void *addr, size_t length, unsigned flags)
{
    return (int)syscall(SYS_mlock2, addr, length, (unsigned long)flags);
}

int sys_munlock(const void *addr, size_t length) { return (int)syscall(SYS_munlock, addr, length); }

int sys_mlockall(int flags) { return (int)syscall(SYS_mlockall, (long)flags); }

/* The core closes a descriptor of ours; from then on the number may be anybody's. */
int sys_close(int fd)
{
    hidden_remove(fd);
    return (int)syscall(SYS_close, (long)fd);
}

int sys_close_range(unsigned first, unsigned last, int flags)
{
    return (int)syscall(SYS_close_range, (unsigned long)first, (unsigned long)last, (long)flags);
}

int sys_statfs(const char *path, struct statfs *fs) { return (int)syscall(SYS_statfs, path, fs); }

int sys_fstatfs(int fd, struct statfs *fs) { return (int)syscall(SYS_fstatfs, (long)fd, fs); }

int sys_dup2(int from, int to) { return (int)syscall(SYS_dup2, (long)from, (long)to); }

int sys_dup3(int from, int to, int flags)
{
    return (int)syscall(SYS_dup3, (long)from, (long)to, (long)flags);
}

off_t sys_lseek(int fd, off_t offset, int whence)
{
    return (off_t)syscall(SYS_lseek, (long)fd, offset, (long)whence);
}

int sys_ioctl(int fd, unsigned long request, void *arg)
{
    return (int)syscall(SYS_ioctl, (long)fd, request, arg);
}

int preload_answer(int err)
{
    if (!err)
        return 0;
    errno = -err;
    return -1;
}
