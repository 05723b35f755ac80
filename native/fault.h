/*
 * fault.h - a page fault on the host mm: tables only, no memory is moved here.
 */
#ifndef MSHARE_FAULT_H
#define MSHARE_FAULT_H

#include "mm.h"

enum fault_access { ACCESS_READ, ACCESS_WRITE };

enum fault_verdict {
    FAULT_MAP,    /* make `pages` from `offset` reachable */
    FAULT_WAIT,   /* the VMA is being replaced: leave the epoch, come again */
    FAULT_MAPERR, /* no VMA: SIGSEGV, SEGV_MAPERR */
    FAULT_ACCERR, /* not permitted: SIGSEGV, SEGV_ACCERR */
    FAULT_BROKEN, /* the tables are not sane, or full: SIGBUS */
};

struct fault {
    uint64_t offset; /* in: region offset of the page */
    enum fault_access access;
    uint64_t ahead; /* in: most pages to map together, >= 1 */
    /* out, with FAULT_MAP */
    uint64_t pages;  /* how many have entries, from `offset` on, <= ahead */
    bool first;      /* this fault filled the entry */
    bool protect;    /* the VMA is not writable */
    struct mm_vma vma;
};

/* Handles a fault as the client of `slot`, which must be inside an epoch and
 * stay in it until the pages are reachable. */
enum fault_verdict mm_fault(struct mm *mm, unsigned slot, struct fault *fault);

#endif
