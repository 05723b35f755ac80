/*
 * uffd.h - calls on a userfaultfd(2): our own, or a duplicate of a client's, which reaches the
 * client's memory even while the client is stopped.
 */
#ifndef MSHARE_UFFD_H
#define MSHARE_UFFD_H

#include <stdbool.h>
#include <stdint.h>

/* As far as addresses go. */
#define UFFD_NOTHING_MORE INT64_MAX

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
/* Does so to what is left of the window at [addr, addr + size). Where the process has unmapped
 * parts of that, or has mapped something else there, it is done mapping by mapping, so that the
 * cost goes with their number; `maps` is the process's /proc/PID/maps.
 * *calls is how many more of those calls there may be; what is made is taken off.
 * Returns how far it came, in bytes from addr: size, less when *calls is used up, or more if
 * nothing of the process is there either; or -errno. -EBUSY: `maps` cannot be read, and too much
 * is missing; or the process changes its mappings all the time. A process whose memory is gone
 * has nothing left to change. */
int64_t uffd_change(int uffd, const char *maps, uint64_t addr, uint64_t size,
                    enum uffd_change change, unsigned *calls);
/* Whether the memory that `uffd` watches still exists: it goes away when the
 * process exits or starts another program. */
bool uffd_alive(int uffd);

#endif
