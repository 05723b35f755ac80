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
 *  - Each attached process runs one service thread of ours. It blocks all
 *    signals and never calls back into the program.
 *  - fork() keeps the attachment: the child is attached before fork() returns
 *    in it. A child made by a bare clone(2) system call is not attached: detach
 *    there.
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
 * Attaches the region open at `fd` and returns its address, a multiple of the
 * quantum. The whole region is attached; holes in it fault with SIGSEGV.
 *
 *   addr   a hint (rounded up to the quantum), or exact with MAP_FIXED or
 *          MAP_FIXED_NOREPLACE
 *   prot   PROT_READ, PROT_WRITE: at most what the descriptor allows
 *   flags  MAP_SHARED, and the two above
 *
 * EINVAL  region not sized, MAP_PRIVATE, misaligned fixed address, MAP_FIXED over
 *         a part of another attachment (over all of it: that one is detached)
 * EACCES  descriptor not open for what `prot` asks
 * EEXIST  MAP_FIXED_NOREPLACE and something is there
 * ENOMEM  no aligned hole of that size in the address space
 * EINVAL  MSHAREFS_PT_BUDGET has a value that mshare_budget() does not take
 * ENOTTY  `fd` is not a region of an msharefs mount
 * EPERM   the server cannot open /dev/userfaultfd, and userfaultfd(2) is not for all
 *         (sysctl vm.unprivileged_userfaultfd)
 * ENOSYS  no userfaultfd with minor faults, write-protect and guard pages for
 *         shared memory (Linux 6.15 has them)
 *
 * Source: mmap() of the file in the kernel series (patches 7 and 18).
 */
MSHARE_API void *mshare_attach(int fd, void *addr, int prot, int flags);

/*
 * Detaches the region attached at `addr`. EINVAL: nothing is attached there.
 * The pages stay in the region. No other thread may be using the memory. A bare
 * munmap(2) (outside of `msharefs run`) does not detach: other shared memory that is
 * mapped in its place would be taken for the region's.
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
 * EINVAL: nothing is attached at `addr`; less than 128 KiB. ENOMEM.
 */
MSHARE_API int mshare_budget(void *addr, uint64_t bytes);

/*
 * Maps an object into the region, as ioctl(MSHAREFS_CREATE_MAPPING) does, and
 * replaces older mappings there. `flags` needs MAP_SHARED|MAP_FIXED, plus
 * MAP_ANONYMOUS for zero-filled memory (`object_fd` and `offset` are ignored),
 * plus MAP_HUGETLB for huge pages of 2 MiB. An object is a file, from its byte
 * `offset` on (a multiple of 4096; other bits are dropped). In force for every
 * attached process when it returns. These are our own errors; it also has those of
 * mmap(2) of the object.
 *
 * EINVAL  region not sized; offset or size outside it or misaligned; flags;
 *         the object is a region
 * EACCES  the descriptor `fd` is read-only
 * EBUSY   an attached process does not answer (a debugger stopped it inside a
 *         fault; or it is stopped and has touched an object that would be replaced;
 *         or it has been stopped since before the server was restarted); nothing was
 *         changed
 * ETIMEDOUT  the file system of the object does not answer
 */
MSHARE_API int mshare_map(int fd, uint64_t region_offset, uint64_t size, int prot, int flags,
                          int object_fd, uint64_t offset);

/*
 * Removes [region_offset, region_offset+size) from the region and frees its
 * pages. In force in every attached process when it returns: later accesses get
 * SIGSEGV with SEGV_MAPERR. A range where nothing is mapped is no error.
 * Errors as for mshare_map().
 */
MSHARE_API int mshare_unmap(int fd, uint64_t region_offset, uint64_t size);

/*
 * Changes the protection of [region_offset, region_offset+size), as mprotect(2) does
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
MSHARE_API int mshare_protect(int fd, uint64_t region_offset, uint64_t size, int prot);

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

/* Fills `st` for the region open at `fd`. ENOTTY: not a region. */
MSHARE_API int mshare_stat(int fd, struct mshare_stat *st);

#ifdef __cplusplus
}
#endif
#endif
