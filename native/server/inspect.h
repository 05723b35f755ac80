/*
 * inspect.h - the contents of a host mm, copied out for people. The counts of running
 * clients change meanwhile.
 */
#ifndef MSHARE_INSPECT_H
#define MSHARE_INSPECT_H

#include "core/mm.h"
#include "msharefs.h"

/* Records who made the region. `cgroup` is cut at MM_CGROUP_LEN - 1. */
void mm_set_owner(struct mm *mm, int32_t pid, uint64_t start_time, const char *cgroup,
                  enum mm_owner_kind kind);
/* Pages that a sequential first touch may fill together, for clients that attach
 * from now on. 1: only touched pages. EINVAL: not 1 to 512. */
int mm_set_fault_around(struct mm *mm, uint32_t pages);
/* Whether first touches of memory that all may read and write are Linux's. */
void mm_set_linux_fills(struct mm *mm, bool fills);
/* Whether there may be pages without entries, which Linux has filled; and that there are none. */
bool mm_unwatched(const struct mm *mm);
void mm_set_watched(struct mm *mm);
/* Bytes of its own page tables that a client which attaches from now on may keep; 0: any
 * number. EINVAL: less than BUDGET_MIN_BYTES. */
int mm_set_budget(struct mm *mm, uint64_t bytes);
/* Of MM_CGROUP_LEN bytes at most: shared memory, perhaps without a final 0. */
const char *mm_owner_cgroup(const struct mm *mm);
enum mm_owner_kind mm_owner_kind(const struct mm *mm);
/* Records that the owner is gone. */
void mm_end(struct mm *mm);

/* Fills all of struct mshare_stat. `mem_fd` holds the pages. 0 or -errno. */
int mm_stat(const struct mm *mm, int mem_fd, struct mshare_stat *st);
void mm_count_unmap(struct mm *mm);

/* Copies the current VMAs; returns how many there are, at most `max` copied. */
int64_t mm_vmas(const struct mm *mm, struct mm_vma *vmas, uint64_t max);

/* One table of the tree. Addresses are host addresses. */
struct mm_table {
    uint64_t frame;
    uint32_t level;           /* 0: PTE page ... 3: PGD */
    uint32_t present;         /* entries in use */
    uint32_t huge;            /* those of them that are leaves: 2 MiB pages */
    uint32_t accessed, dirty; /* those of a PTE page that have the bit */
    uint64_t start, end;
};

/* Lists the tables, upper levels after their children; returns how many. */
int64_t mm_tables(struct mm *mm, struct mm_table *tables, uint64_t max);

/* Host addresses of the 2 MiB pages that have an entry; returns how many, at most `max`
 * copied. */
int64_t mm_huge_pages(struct mm *mm, uint64_t *pages, uint64_t max);

/* Which pages of [start, end), region offsets, have an entry: a byte of `vec` for each, 1 or 0. */
void mm_present(struct mm *mm, uint64_t start, uint64_t end, uint8_t *vec);

/* A leaf entry as a processor would read it; also one of a page without access. */
struct mm_leaf {
    uint64_t start; /* host address */
    uint64_t size;  /* bytes */
    uint64_t entry;
};

/* Lists the leaf entries of [start, end), region offsets, in order; returns how many there are, at
 * most `max` copied. */
int64_t mm_leaves(struct mm *mm, uint64_t start, uint64_t end, struct mm_leaf *leaves,
                  uint64_t max);

/* Pages of 4 KiB of a range that have an entry, and of these those that were accessed, and
 * written. */
struct mm_usage {
    uint64_t present, accessed, dirty;
};

/* Adds those of [start, end), region offsets, to `usage` (in and out). 0 or -errno. */
int mm_usage(struct mm *mm, uint64_t start, uint64_t end, struct mm_usage *usage);

/* One attachment. */
struct mm_client {
    uint32_t slot, pid;
    uint32_t pid_namespace; /* `pid` belongs to that namespace; 0: the server's */
    uint64_t claim;
    uint64_t start_time, base;
    uint64_t offset, size; /* of the part of the region that it has there */
    uint32_t prot, poisoned;
    uint32_t way;      /* enum attach_way */
    uint32_t unshared; /* page tables that it has for itself, as it says: of its part at most */
    uint64_t faults, links, materialised, segv;
    uint64_t epoch; /* not 0: inside a fault */
    /* Bytes of its own page tables that it keeps, 0: any number; how often that was raised. */
    uint64_t budget, budget_asked, budget_grown;
    uint64_t evicted, refaulted; /* 2 MiB spans */
};

/* The attachment of a slot; false: it is free. */
bool mm_client(const struct mm *mm, unsigned number, struct mm_client *client);
/* All of them, by slot; returns how many there are, at most `max` copied. */
int64_t mm_clients(const struct mm *mm, struct mm_client *clients, uint64_t max);
/* The process of a slot, in the server's pid namespace; 0: the slot is free. */
uint32_t mm_client_pid(const struct mm *mm, unsigned slot);
/* Number of the slot's claim; 0: it is free. */
uint64_t mm_claim(const struct mm *mm, unsigned slot);
/* Whether the client of a slot may change the window at will (ATTACH_ADOPTED). */
bool mm_adopted(const struct mm *mm, unsigned slot);
/* Whether there are pages that the client of a slot does not watch any more (handover.c). */
bool mm_handed(const struct mm *mm, unsigned slot);
/* The first slot in use, from `from` up to `until`, that touched [start, end); -1: none. */
int mm_touched(const struct mm *mm, unsigned from, unsigned until, uint64_t start, uint64_t end);
/* The first slot, from `from` on, whose client has guard pages; -1: none. */
int mm_poisoned(const struct mm *mm, unsigned from);
/* Records the process of a slot by its pid in the server's namespace, for a client in another. */
void mm_set_client(struct mm *mm, unsigned slot, uint32_t pid, uint64_t start_time);

#endif
