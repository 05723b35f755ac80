/*
 * sys.h - system calls, past the functions of their names.
 *
 * This folder is the library that stands before the C library's mmap(2) and its relatives
 * (LD_PRELOAD, set up by `msharefs run`), so that a program written for the kernel series, or
 * for no series at all, gets regions. A file that defines nothing but functions of the C
 * library has no header: theirs is the C library's.
 *
 *   sys.c      the kernel itself
 *   range.c    which windows a range of addresses concerns
 *   mmap.c     mmap of a region file attaches
 *   mounts.c   whose files are asked whether they are regions
 *   adopt.c    shared memory that the program makes for itself becomes a region
 *   tell.c     shared memory that Linux makes for it: the server is told of it
 *   refused.c  why memory was not adopted, for the report
 *   sysv.c     shmat is such memory
 *   alone.c    with -o window=private, they are the process's own
 *   inner.c    with -o window=inner, the calls below on a window are calls on its region
 *   shared_pt.c  MAP_SHARED_PT, a flag that no kernel has
 *   ledger.c   which page tables Android's kernel would share for it
 *   unmap.c    munmap, mremap, mprotect, ... of windows
 *   advice.c   madvise, process_madvise, msync, mincore of windows
 *   lock.c     mlock, mlockall
 *   seek.c     lseek: ESPIPE on a region
 *   userfault.c  ioctl: a userfaultfd of the program's own over a window
 *   bare.c     _Fork, clone: children that run no handlers of fork
 *   deepbind.c dlopen of a plug-in that would prefer the C library to us
 *   syscall.c  syscall(2) with the number of one of these
 *   filter.c   prctl, seccomp: has the program a filter?
 *   fd.c       close, dup2: our descriptors are not the program's
 *   statfs.c   statfs: the series' type of file system
 *   mount.c    mount, umount: the series' type, where a mount of ours is
 *   table.c    /proc/mounts and its relatives: that type in a mount's line
 *
 * The program's calls come to functions with the C library's names. Those of the core, which
 * is linked into this library as into the others, must not: the linker binds its references
 * to those names to sys.c (--wrap). A call that has nothing to do with a window costs two
 * more loads than before, an mmap(2) of a file one statx(2).
 *
 * We do not see system calls made without the C library (Go, static programs).
 */
#ifndef MSHARE_PRELOAD_SYS_H
#define MSHARE_PRELOAD_SYS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/vfs.h>

/* Declares the system call itself, past the function of that name. */
#define SYS(name) __asm__("__wrap_" #name)

long sys_syscall(long number, long a, long b, long c, long d, long e, long f) SYS(syscall);
void *sys_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) SYS(mmap);
int sys_munmap(void *addr, size_t length) SYS(munmap);
int sys_mprotect(void *addr, size_t length, int prot) SYS(mprotect);
int sys_pkey_mprotect(void *addr, size_t length, int prot, int pkey) SYS(pkey_mprotect);
void *sys_mremap(void *old, size_t old_size, size_t new_size, int flags, void *to) SYS(mremap);
int sys_remap_file_pages(void *addr, size_t size, int prot, size_t page, int flags)
    SYS(remap_file_pages);
int sys_mseal(void *addr, size_t length, unsigned long flags) SYS(mseal);
int sys_madvise(void *addr, size_t length, int advice) SYS(madvise);
int sys_msync(void *addr, size_t length, int flags) SYS(msync);
int sys_mincore(void *addr, size_t length, unsigned char *vec) SYS(mincore);
int sys_mlock(const void *addr, size_t length) SYS(mlock);
int sys_mlock2(const void *addr, size_t length, unsigned flags) SYS(mlock2);
int sys_munlock(const void *addr, size_t length) SYS(munlock);
int sys_mlockall(int flags) SYS(mlockall);
int sys_close(int fd) SYS(close);
int sys_close_range(unsigned first, unsigned last, int flags) SYS(close_range);
int sys_statfs(const char *path, struct statfs *fs) SYS(statfs);
int sys_fstatfs(int fd, struct statfs *fs) SYS(fstatfs);
int sys_dup2(int from, int to) SYS(dup2);
int sys_dup3(int from, int to, int flags) SYS(dup3);
off_t sys_lseek(int fd, off_t offset, int whence) SYS(lseek);
int sys_ioctl(int fd, unsigned long request, void *arg) SYS(ioctl);

/* The result of a system call: 0, or -1 and errno. */
int preload_answer(int err);

#endif
