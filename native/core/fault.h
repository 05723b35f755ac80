/*
 * fault.h - a page fault on the host mm: only tables change, no memory is moved here.
 */
#ifndef MSHARE_FAULT_H
#define MSHARE_FAULT_H

#include "core/mm.h"

enum fault_access { ACCESS_READ, ACCESS_WRITE };

enum fault_verdict {
    FAULT_MAP,    /* make the page at `offset` reachable, and those that are `present` */
    FAULT_WAIT,   /* the VMA is being replaced: leave the epoch, come again */
    FAULT_MAPERR, /* no VMA: SIGSEGV, SEGV_MAPERR */
    FAULT_ACCERR, /* not permitted: SIGSEGV, SEGV_ACCERR */
    FAULT_BROKEN, /* the tables are not sane, or full: SIGBUS */
    FAULT_LATER,  /* its object is on the way here; then the thread is woken */
};

/* The unit of fault.skip, in bytes. */
#define FAULT_BLOCK (32 * PAGE_SIZE)

struct fault {
    uint64_t offset; /* in: region offset of the page */
    enum fault_access access;
    /* in: the range to search for other pages that can be mapped now: region offsets
     * inside one 2 MiB span, and `offset` is among them. In an object: the pages that
     * are mapped together, any number; they all get entries. */
    uint64_t start, end;
    uint32_t skip;  /* in: FAULT_BLOCKs of the span to leave out, one bit for each */
    uint64_t fill;  /* in: if this is a first touch, entries to fill from `offset` on, >= 1 */
    uint64_t limit; /* in, for an object: the end of its file; pages from here on have no memory */
    /* out, with FAULT_MAP */
    /* one bit for each page from `start` on: it has an entry. Not for objects */
    uint64_t present[SPAN_PAGES / 64];
    uint64_t filled; /* entries this fault filled, from `offset` on */
    uint64_t beside; /* and other entries, of an object */
    bool protect;    /* the VMA is not writable */
    struct mm_vma vma;
    /* out, with FAULT_BROKEN: what could not be done, and -errno or 0 */
    const char *step;
    int error;
};

/* How much of an object is mapped, and filled, at once: a power of two of bytes. */
uint64_t fault_block(const struct mm_vma *vma);
/* Finds the VMA, and whether the access is permitted: FAULT_MAP.
 * Precondition: inside an epoch, which lasts until the pages are reachable. */
enum fault_verdict fault_look(const struct mm *mm, struct fault *fault);
/* The second half: fills the entries, as the client of `slot`.
 * Precondition: fault_look() said FAULT_MAP, in the same epoch. */
enum fault_verdict fault_fill(struct mm *mm, unsigned slot, struct fault *fault);
/* After a FAULT_MAP: gives the region memory where fault_fill() has filled entries, or at least the
 * page itself. Returns 0 or -errno. */
int fault_make_pages(const struct fault *fault, int mem_fd);
/* Gives the region memory at offset [start, start + size). Returns 0 or -errno. */
int fault_make_range(int mem_fd, uint64_t start, uint64_t size);
/* Both halves, fault_look() and fault_fill(). Precondition: as fault_look(). */
enum fault_verdict mm_fault(struct mm *mm, unsigned slot, struct fault *fault);

#endif
