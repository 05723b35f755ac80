/*
 * audit.h - every invariant of a whole region, looked at.
 */
#ifndef MSHARE_AUDIT_H
#define MSHARE_AUDIT_H

#include "core/mm.h"

/* The result of an audit of a whole region. In a quiescent region everything from
 * `held` on is 0, and frame_bytes == 4096 * sum(tables). */
struct mm_audit {
    uint64_t tables[4]; /* reachable, by level: PTE, PMD, PUD, PGD pages */
    uint64_t leaves;    /* present leaf entries */
    uint64_t frame_bytes;
    uint64_t held;  /* frames that a client is about to link */
    uint64_t lost;  /* frames in use that no entry reaches */
    uint64_t stray; /* leaf entries outside every VMA */
    uint64_t bad;   /* entries that do not point to a sane place or have wrong bits */
    uint64_t vmas;  /* VMAs out of order, overlapping or outside the region */
};

/* Precondition: none; of a region in use the result is of no one moment. */
int mm_audit(struct mm *mm, struct mm_audit *audit);
/* After a server's death: frees the tables that it had cut off but not yet freed.
 * Precondition: the only writer. */
int mm_sweep(struct mm *mm);
/* Drops entries that are not as they must be, and frees what is in use for nothing: then an audit
 * finds nothing but wrong VMAs. Precondition: the only writer, and no change is unfinished. */
int mm_mend(struct mm *mm);

#endif
