/*
 * msharefs.h - attach to msharefs regions: memory whose page tables are shared.
 *
 * A region is a file of an msharefs mount. It owns a host mm: VMAs and page
 * tables that belong to the file, not to a process. Give it a size once with
 * ftruncate(2) (a multiple of the mount's quantum, read it from mshare_info),
 * put memory into it with mshare_map(), and attach it; every attached process
 * then finds the page table entries that any of them has filled.
 *
 * Functions behave like system calls: on error they return -1 (mshare_attach:
 * MAP_FAILED) and set errno. Sizes, offsets and addresses are in bytes.
 *
 * Caveats
 *  - The faults of each attachment are taken by a process of ours beside the
 *    program, which shares its address space and nothing else. With
 *    MSHAREFS_CLIENT=thread in the environment, and where no such process can be
 *    made, one service thread in the program takes them. It blocks all signals
 *    and never calls back into the program.
 *  - fork() keeps the attachment: the child is attached before fork() returns
 *    in it. A child of _Fork(3) or of a bare clone(2) system call is not attached:
 *    detach there, or attach anew.
 *  - A region descriptor may be closed after mshare_attach(); the attachment
 *    stays, as a mapping does.
 *  - The functions are thread-safe, not async-signal-safe.
 *  - Protections guard against mistakes, not against a hostile attacher: a process
 *    that may attach has the region's memory mapped.
 */
#ifndef MSHAREFS_H
#define MSHAREFS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MSHARE_API __attribute__((visibility("default")))

/* The kernel series' interface, bit for bit (include/uapi/linux/msharefs.h, v3). */

struct mshare_create {
    uint64_t region_offset; /* where in the region, page aligned */
    uint64_t size;          /* bytes */
    uint64_t offset;        /* into the object `fd`, bytes */
    uint32_t prot;          /* PROT_*, as in mmap(2) */
    uint32_t flags;         /* MAP_*; MAP_SHARED|MAP_FIXED are required */
    uint32_t fd;            /* ignored with MAP_ANONYMOUS */
};

struct mshare_unmap {
    uint64_t region_offset;
    uint64_t size;
};

#define MSHAREFS_CREATE_MAPPING _IOW('x', 0, struct mshare_create)
#define MSHAREFS_UNMAP _IOW('x', 1, struct mshare_unmap)

/* Ours: the change of protection that the series announces and v3 lacks. */
struct mshare_protect {
    uint64_t region_offset;
    uint64_t size;
    uint32_t prot;  /* PROT_*, as in mprotect(2) */
    uint32_t flags; /* 0 */
};

#define MSHAREFS_PROTECT _IOW('x', 0x10, struct mshare_protect)

/*
 * Ours: verbs on the region, for all processes at once; mshare_advise() and its relatives make
 * these calls and explain them. Bits of `flags` that have no meaning there, and `pad`, are 0.
 */
struct mshare_advise {
    uint64_t region_offset;
    uint64_t size;
    uint32_t advice; /* MADV_*, as in madvise(2) */
    uint32_t flags;
};

struct mshare_range {
    uint64_t region_offset;
    uint64_t size;
    uint32_t flags; /* of SYNC: MS_*, as in msync(2) */
    uint32_t pad;
};

#define MSHARE_QUERY_PAGES 4096u

struct mshare_query {
    uint64_t region_offset;
    uint64_t size;                   /* of so many pages at most */
    uint8_t vec[MSHARE_QUERY_PAGES]; /* out: a byte for each page, as in mincore(2) */
};

#define MSHARE_NODES 1024u

struct mshare_mbind {
    uint64_t region_offset;
    uint64_t size;
    uint32_t mode;  /* MPOL_*, as in mbind(2) */
    uint32_t flags; /* MPOL_MF_* */
    uint64_t maxnode;
    uint64_t nodemask[MSHARE_NODES / 64];
};

#define MSHAREFS_ADVISE _IOW('x', 0x12, struct mshare_advise)
#define MSHAREFS_LOCK _IOW('x', 0x13, struct mshare_range)
#define MSHAREFS_UNLOCK _IOW('x', 0x14, struct mshare_range)
#define MSHAREFS_SYNC _IOW('x', 0x15, struct mshare_range)
#define MSHAREFS_SEAL _IOW('x', 0x16, struct mshare_range)
#define MSHAREFS_QUERY _IOWR('x', 0x17, struct mshare_query)
#define MSHAREFS_MBIND _IOW('x', 0x18, struct mshare_mbind)

/* Ours: hands a region over, see mshare_set_owner(). */
struct mshare_owner {
    int32_t pidfd;
    uint32_t flags; /* 0 */
};

#define MSHAREFS_SET_OWNER _IOW('x', 0x19, struct mshare_owner)

/*
 * Ours: hand the server one end of a socket pair; it becomes a control
 * connection with the rights of this descriptor. The libraries use it, programs
 * need not. Where the server may not fetch descriptors from the caller (Yama),
 * `path` and `token` come back filled: connect there and send the token.
 */
struct mshare_connect {
    int32_t fd;
    uint32_t flags; /* out: MSHARE_CONNECT_TOKEN */
    uint8_t token[16];
    char path[108];
};

#define MSHARE_CONNECT_TOKEN 1u
#define MSHAREFS_CONNECT _IOWR('x', 0x11, struct mshare_connect)

/*
 * Makes a region without a name, and returns a descriptor of it, open for reading and writing. Size
 * it with ftruncate(2). Others get it by the descriptor alone: over a socket, or by
 * pidfd_getfd(2). The caller owns it as with -o owner=creator: when the caller exits, or closes the
 * last descriptor that it has of it, the region ends for everybody, unless it was handed over
 * before (mshare_set_owner()). `flags` are 0 or O_CLOEXEC.
 *
 * The mount is $MSHAREFS_MOUNT, or the only one that is root's or the caller's own. On it this is
 * open(2) of the directory with O_TMPFILE|O_EXCL.
 *
 * EINVAL  unknown flags
 * ENODEV  there is no such mount, or more than one
 * and those of open(2).
 *
 * Source: the name, and that the creator owns it, LSFMM+BPF 2026; the rest is ours.
 */
MSHARE_API int mshare_create(unsigned int flags);

/*
 * Attaches the region open at `fd`, or a part, and returns its address, a multiple of the quantum;
 * MAP_FAILED with errno. What may be done with the memory is what the descriptor was opened for,
 * and what the region's mappings permit; holes fault with SIGSEGV.
 *
 *   offset, size   what of the region: multiples of the quantum; size 0: the rest. Any number of
 *                  parts may be attached, and the same part more than once
 *   addr           a hint (rounded up to the quantum), or exact with MAP_FIXED or
 *                  MAP_FIXED_NOREPLACE
 *   flags          those two, and MSHARE_ATTACH_READ: for reading only, whatever the descriptor
 *
 * EINVAL  region not sized, a part that is misaligned or not inside it, unknown bits, misaligned
 *         fixed address, MAP_FIXED over a part of another attachment (over all of it: that one is
 *         detached)
 * EACCES  descriptor open for writing only
 * EEXIST  MAP_FIXED_NOREPLACE and something is there
 * ENOMEM  no aligned hole of that size in the address space; or nothing can be mapped so far
 *         behind in a region, for want of addresses
 * EINVAL  MSHAREFS_PT_BUDGET has a value that mshare_budget() does not take, or MSHAREFS_CLIENT one
 *         that is neither thread nor shadow
 * ENOTTY  `fd` is not a region of an msharefs mount
 * EPERM   the server cannot open /dev/userfaultfd, and userfaultfd(2) is not for all
 *         (sysctl vm.unprivileged_userfaultfd)
 * ENOSYS  no userfaultfd with minor faults, write-protect and guard pages for
 *         shared memory (Linux 6.15 has them)
 *
 * Source: mmap() of the file in the kernel series (patches 7 and 18). Name and arguments are those
 * that were shown at LSFMM+BPF 2026; that it returns an address, and MSHARE_ATTACH_READ, are ours.
 */
#define MSHARE_ATTACH_READ 0x1000000u
MSHARE_API void *mshare_attach(int fd, off_t offset, size_t size, void *addr, unsigned int flags);

/*
 * Detaches the region attached at `addr`. The pages stay in the region. No other thread may be
 * using the memory. A bare munmap(2) (outside of `msharefs run`) does not detach: other shared
 * memory that is mapped in its place would be taken for the region's. Private memory that the
 * program has put there stays as it is, whatever happens to the region, and after this call, too.
 *
 * EINVAL  nothing is attached at `addr`
 */
MSHARE_API int mshare_detach(void *addr);

/*
 * Limits the cost of the attachment at `addr` in page tables of this process's own:
 * `bytes` of PTE pages (4096 bytes for 2 MiB of the region), 0: no limit. The coldest
 * spans of 2 MiB are given back to the kernel; a later access brings a span back, which
 * costs a fault. If more is in use all the time, the budget grows instead of thrashing,
 * and shrinks again when it can; `msharefs clients` shows it. Above the PTE pages a
 * process has one page for each GiB, which stays. A child of fork() starts with `bytes`.
 *
 * An attachment starts with the budget of the environment variable MSHAREFS_PT_BUDGET
 * (bytes, or with K, M, G: 4M). If that is not set, it starts with the budget of the
 * mount (-o budget=4M), or with none.
 *
 * EINVAL  nothing is attached at `addr`; less than 128 KiB
 * ENOMEM  there is no memory for it
 */
MSHARE_API int mshare_budget(void *addr, uint64_t bytes);

/*
 * Maps an object into the region, as ioctl(MSHAREFS_CREATE_MAPPING) does, and
 * replaces older mappings there. `flags` needs MAP_SHARED|MAP_FIXED, plus
 * MAP_ANONYMOUS for zero-filled memory (`object_fd` and `object_offset` are ignored),
 * plus MAP_HUGETLB for huge pages of 2 MiB. An object is a file, from its byte
 * `offset` on (a multiple of 4096; other bits are dropped). In force for every
 * attached process when it returns. These are our own errors; it also has those of
 * mmap(2) of the object.
 *
 * With MSHARE_MAP_FROM private memory of the caller becomes memory of the region: `object_offset`
 * is its address, `object_fd` is -1, and `flags` is MAP_SHARED|MAP_FIXED|MSHARE_MAP_FROM. Its
 * contents move into the region, where nothing may be mapped yet, with the protection `prot`; then
 * an attachment takes its place, at the same address, with the same bytes, in one step. It is an
 * attachment like any other: fork() keeps it, mshare_detach() ends it, and the memory is gone then.
 * Address, offset and size are multiples of the quantum, since that is what page tables can be
 * shared for. Other threads may read the memory meanwhile. If they store into anonymous memory of
 * it, they wait, and the store goes into the region. What they store into a private mapping of a
 * file may be lost. What had been inherited or locked (mlock(2)) is so no longer.
 *
 * EINVAL  region not sized; offset or size outside it or misaligned; flags;
 *         the object is a region; MSHARE_MAP_FROM: there is shared memory in the range, or huge
 *         pages
 * ENOMEM  MSHARE_MAP_FROM: nothing is mapped in a part of the range
 * EFAULT  MSHARE_MAP_FROM: a touch of it would be a SIGBUS
 * EEXIST  MSHARE_MAP_FROM: something is mapped there in the region
 * EPERM   MSHARE_MAP_FROM: the range is sealed (mseal(2)); or as mshare_attach()
 * EACCES  the descriptor `fd` is read-only; MSHARE_MAP_FROM: the range may not be read
 * EBUSY   an attached process does not answer (a debugger stopped it inside a
 *         fault; or it is stopped and has touched an object that would be replaced;
 *         or it has been stopped since before the server was restarted); nothing was
 *         changed
 * ETIMEDOUT  the file system of the object does not answer
 *
 * Source: the name, "the equivalent of mmap", LSFMM+BPF 2026; its form, and MSHARE_MAP_FROM, are
 * ours.
 */
#define MSHARE_MAP_FROM 0x2000000u
MSHARE_API int mshare_map(int fd, off_t offset, size_t size, int prot, int flags, int object_fd,
                          off_t object_offset);

/*
 * Removes [offset, offset+size) from the region and frees its
 * pages. In force in every attached process when it returns: later accesses get
 * SIGSEGV with SEGV_MAPERR. A range where nothing is mapped is no error.
 *
 * EINVAL  region not sized; range outside it, empty or misaligned
 * EACCES  the descriptor `fd` is read-only
 * EPERM   sealed; memory that a program has adopted
 * EBUSY   an attached process does not answer, as for mshare_map(); nothing was changed
 */
MSHARE_API int mshare_unmap(int fd, off_t offset, size_t size);

/*
 * Changes the protection of [offset, offset+size), as mprotect(2) does
 * for one process: in force for every attached process when it returns, including
 * their running threads. No byte is lost. A refused access gets SIGSEGV with
 * SEGV_ACCERR.
 *
 * EINVAL  region not sized; range outside it or misaligned; unknown bit in `prot`
 * ENOMEM  a part of the range is not mapped, or too many mappings
 * EACCES  the descriptor `fd` is read-only
 * EBUSY   an attached process does not answer: it is stopped and would lose all
 *         access, or it is stopped inside a fault or between fork() and its
 *         attachment. Nothing was changed, for anybody.
 */
MSHARE_API int mshare_protect(int fd, off_t offset, size_t size, int prot);

/*
 * What madvise(2), mlock(2), mbind(2), msync(2), mincore(2) and mseal(2) do to the memory of one
 * process, these do to a range of a region, for all attached processes at once. They are in force
 * when they return, in stopped processes, too; otherwise they fail, and nothing was changed. They
 * are ours: at LSFMM+BPF 2026 it was said that the series is to have "various other calls".
 *
 * EINVAL  region not sized; range outside it or misaligned; unknown bits; an unknown value
 * ENOMEM  a part of the range is not mapped, or there would be too many mappings
 * EACCES  the descriptor `fd` is read-only (query and sync take any descriptor)
 * EPERM   sealed (REMOVE, GUARD_INSTALL); memory that a program has adopted
 * EBUSY   as for mshare_protect()
 * EOPNOTSUPP  the file system of an object cannot do that, or is served by a process or another
 *         machine (FUSE, NFS), so that the server does not wait for it: POPULATE, COLLAPSE, lock
 *
 * A size of 0 does nothing. A size is rounded up to whole pages.
 */

/*
 * MADV_DONTNEED   everybody's page table entries go; the data stay, and a touch brings them back
 * MADV_COLD, MADV_PAGEOUT   so do they, and then the pages are the first to be reclaimed, or are
 *                 reclaimed now, to swap or to their file; however many processes had them mapped
 * MADV_REMOVE     the contents go: zeros, for all; of a file, too. EACCES: not writable
 * MADV_POPULATE_READ, MADV_POPULATE_WRITE   all pages and their entries are there. EINVAL: no right
 *                 to do that. EFAULT: a touch would be a SIGBUS, as beyond the end of a file
 * MADV_WILLNEED   pages are read ahead
 * MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL   are kept with the mapping (`msharefs smaps`)
 * MADV_HUGEPAGE, MADV_NOHUGEPAGE   are kept, and HUGEPAGE lets POPULATE ask for huge pages
 * MADV_COLLAPSE   whole spans of 2 MiB are populated, and become huge pages where the kernel can
 * MADV_GUARD_INSTALL, MADV_GUARD_REMOVE   a touch is SIGSEGV, SEGV_MAPERR, for all; the data stay
 *
 * EINVAL is the rest (FREE, WIPEONFORK, DONTFORK, DONTDUMP, MERGEABLE ...), and, as in madvise(2),
 * locked memory (COLD, PAGEOUT, DONTNEED, REMOVE, GUARD_INSTALL) and 2 MiB pages of hugetlbfs
 * (COLD, PAGEOUT, HUGEPAGE, NOHUGEPAGE, COLLAPSE, GUARD_*).
 */
MSHARE_API int mshare_advise(int fd, off_t offset, size_t size, int advice);

/*
 * Brings the range into memory and keeps it there, until mshare_unlock(), or until it is unmapped
 * or replaced. It is charged to the owner of the region: all that is locked in the regions of one
 * owner counts against that process's RLIMIT_MEMLOCK (against the caller's, if the owner has
 * ended), and CAP_IPC_LOCK lifts that. `flags` is 0.
 *
 * ENOMEM  also: more than may be locked; or a part permits no access
 * EPERM   nothing may be locked
 * EOPNOTSUPP  MLOCK_ONFAULT
 */
MSHARE_API int mshare_lock(int fd, off_t offset, size_t size, unsigned int flags);
MSHARE_API int mshare_unlock(int fd, off_t offset, size_t size);

/*
 * Decides on which memory nodes the pages of the range are made from now on, whoever touches them:
 * arguments as of mbind(2), whose MPOL_MF_MOVE moves those that are there already. For objects that
 * are ordinary files it does nothing, as there.
 *
 * EIO     MPOL_MF_STRICT, and a page is elsewhere
 * EPERM   MPOL_MF_MOVE_ALL, without CAP_SYS_NICE
 * ENOSYS  a kernel without memory policies
 */
MSHARE_API int mshare_mbind(int fd, off_t offset, size_t size, int mode,
                            const unsigned long *nodemask, unsigned long maxnode,
                            unsigned int flags);

/*
 * With MS_SYNC, what was stored in the files of the range is on their disks when it returns.
 * `flags` are those of msync(2).
 *
 * EBUSY   MS_INVALIDATE, and a part is locked
 */
MSHARE_API int mshare_sync(int fd, off_t offset, size_t size, int flags);

/*
 * Says which pages of the range are in memory: the lowest bit of a byte of `vec` for each page, as
 * in mincore(2). Any process may have brought them there.
 */
MSHARE_API int mshare_query(int fd, off_t offset, size_t size, unsigned char *vec);

/*
 * Seals the range: from now on its mappings cannot be unmapped, replaced, protected otherwise or
 * discarded (EPERM), by nobody and for ever. The region itself can still go.
 */
MSHARE_API int mshare_seal(int fd, off_t offset, size_t size);

/*
 * Hands the region to another process: from now on that one is the owner, whatever the rule of the
 * mount makes of it (-o owner=), whose limits count for what is locked, and to whose memory cgroup
 * `msharefs stat` reports charges. With -o charge=owner, pages that come later are really charged
 * there; those that are there stay charged to whom they were. As with -o owner=creator, closing
 * its last descriptor counts once it has had one. With -o owner=thread the owner is the thread of a
 * pidfd made with PIDFD_THREAD, or the first thread.
 *
 * EINVAL  the region has ended with its owner
 * EACCES  the descriptor `fd` is read-only
 * EBADF   `pidfd` is no pidfd
 * ESRCH   that process has ended, or the server does not see it
 * EPERM   the caller is not the owner, nor root or the server's user; memory that a program has
 *         adopted
 *
 * Source: wanted at LSFMM+BPF 2026, "so that the creator could hand the region off and exit"; its
 * form is ours.
 */
MSHARE_API int mshare_set_owner(int fd, int pidfd);

/* What `msharefs stat` shows; the counters only grow. */
struct mshare_stat {
    uint64_t size;             /* bytes; 0: not sized yet */
    uint64_t quantum;          /* bytes: alignment of size and attach address */
    uint64_t rss;              /* bytes of anonymous memory in use */
    uint64_t page_table_bytes; /* bytes the shared table frames really take */
    uint64_t table_frames[4];  /* frames in use: PTE, PMD, PUD, PGD pages */
    uint64_t vmas;
    uint64_t clients;            /* attachments */
    uint64_t faults;             /* entries filled because a page was touched first */
    uint64_t links;              /* shared tables linked: one per client and quantum */
    uint64_t materialised_pages; /* the emulator's own work in the clients' real tables */
    uint64_t unmaps;
    uint64_t segv;       /* accesses answered with SIGSEGV */
    uint64_t prefaulted; /* entries filled ahead of a sequential first touch */
    int32_t owner_pid;
    uint32_t pad;
    uint64_t owner_start_time; /* clock ticks since boot, /proc/PID/stat field 22 */
    uint64_t budget;           /* bytes of its own page tables that a client may keep; 0: any */
    uint64_t budgets_grown;    /* clients that had to keep more */
    uint64_t evicted_spans;    /* 2 MiB spans that clients gave back to stay within it */
    uint64_t refaulted_spans;  /* those of them that came back */
};

/*
 * Fills `st` for the region open at `fd`. `size` is the program's sizeof(struct mshare_stat): a
 * later one may be longer, and what a library does not know is 0.
 *
 * ENOTTY  `fd` is not a region of an msharefs mount
 */
MSHARE_API int mshare_stat(int fd, struct mshare_stat *st, size_t size);

/* The library's version, as "0.1.0". */
MSHARE_API const char *mshare_version(void);

#ifdef __cplusplus
}
#endif
#endif
