/*
 * uffd.h - calls on a userfaultfd(2): our own, or a duplicate of a client's, which reaches the
 * client's memory even while the client is stopped.
 */
#ifndef MSHARE_UFFD_H
#define MSHARE_UFFD_H

#include <stdbool.h>
#include <stdint.h>

enum uffd_change {
    UFFD_WATCH,   /* absent pages fault to it */
    UFFD_PROTECT, /* present pages become read-only */
    UFFD_ALLOW,   /* they become writable again */
};

/* A new userfaultfd, made by /dev/userfaultfd, open as `device`; or, if that is -1, by the
 * system call, which is for all where the sysctl vm.unprivileged_userfaultfd is 1, and for
 * CAP_SYS_PTRACE. The descriptor, or -errno. */
int uffd_new(int device);
/* Makes [addr, addr + size) fault to it, for every event that we answer. 0 or -errno. */
int uffd_watch(int uffd, uint64_t addr, uint64_t size);
/* Does so to [addr, addr + size), but for what is no mapping of ours there. 0 or -errno.
 * A process without memory any more has nothing left to change. */
int uffd_change(int uffd, uint64_t addr, uint64_t size, enum uffd_change change);
/* Whether the memory that `uffd` watches still exists: it goes away when the
 * process exits or starts another program. */
bool uffd_alive(int uffd);

#endif
