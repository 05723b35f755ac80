/*
 * audit.h - every invariant of a whole region, looked at.
 */
#ifndef MSHARE_AUDIT_H
#define MSHARE_AUDIT_H

#include "core/mm.h"

/* What an audit of a whole region found. In a quiescent region everything from
 * `held` on is 0, and frame_bytes == 4096 * sum(tables). */
struct mm_audit {
    uint64_t tables[4]; /* reachable, by level: PTE, PMD, PUD, PGD pages */
    uint64_t leaves;    /* present leaf entries */
    uint64_t frame_bytes;
    uint64_t held;   /* frames in somebody's hand */
    uint64_t lost;   /* frames in use that no entry reaches */
    uint64_t stray;  /* leaf entries outside every VMA */
    uint64_t bad;    /* entries that point nowhere sane or have wrong bits */
    uint64_t vmas;   /* VMAs out of order, overlapping or outside the region */
};

int mm_audit(struct mm *mm, struct mm_audit *audit);
/* After a server's death: frees tables it had cut off and not yet freed. */
int mm_sweep(struct mm *mm);

#endif
