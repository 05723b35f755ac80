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

/* Makes a userfaultfd by /dev/userfaultfd, open as `device`; or, if that is -1, by the system
 * call, which everybody may use if the sysctl vm.unprivileged_userfaultfd is 1, and otherwise
 * only a process with CAP_SYS_PTRACE. Returns the descriptor, or -errno. */
int uffd_new(int device);
/* Makes [addr, addr + size) fault to it, for every event that we answer. 0 or -errno. */
int uffd_watch(int uffd, uint64_t addr, uint64_t size);
/* Takes the watch off [addr, addr + size) again, and wakes the threads that wait there. 0 or
 * -errno; -EINVAL: it is memory that nobody can watch. */
int uffd_unwatch(int uffd, uint64_t addr, uint64_t size);
/* Makes `change` to the parts that are left of the window at [addr, addr + size). If the process
 * has unmapped parts of the window, or has other mappings there, this goes mapping by mapping, so
 * that the cost depends on their number; `maps` is the process's /proc/PID/maps.
 * *calls (in and out) is how many of these calls may still be made.
 * Returns how far it came, in bytes from addr: size, or less when *calls is used up, or more if
 * the process has no mapping behind it either; or -errno. -EBUSY: `maps` cannot be read, and too
 * much is missing; or the process changes its mappings all the time. A process whose memory is
 * gone has nothing left to change. */
int64_t uffd_change(int uffd, const char *maps, uint64_t addr, uint64_t size,
                    enum uffd_change change, unsigned *calls);
/* The same, with `maps` open already; -1: it could not be opened. */
int64_t uffd_change_by(int uffd, int maps, uint64_t addr, uint64_t size, enum uffd_change change,
                       unsigned *calls);
/* Whether the memory that `uffd` watches still exists: it goes away when the
 * process exits or starts another program. */
bool uffd_alive(int uffd);

#endif
