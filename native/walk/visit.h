/*
 * visit.h - one address space visits pages, and what it meets is compared with what the tables say.
 * Functions return 0 or -errno.
 */
#ifndef MSHARE_WALK_VISIT_H
#define MSHARE_WALK_VISIT_H

#include "walk/spaces.h"

struct found {
    uint64_t runs;
    uint64_t links;   /* faults that linked a PUD table */
    uint64_t visited; /* pages that were read or written */
    uint64_t refused; /* accesses that faulted as their entry has it */
    uint64_t wrong;   /* values that the region does not hold */
    uint64_t faulted; /* accesses that faulted and should not have */
    uint64_t allowed; /* accesses that should have faulted */
};

/* Visits pages. EAGAIN: the region has been changed, and nothing more is known. */
int visit(const struct spaces *spaces, uint64_t number, enum loop loop, const struct leaf *leaves,
          uint64_t count, struct found *found);
/* What becomes of the TLB when the next address space has its turn. */
enum switching {
    SWITCH_FLUSH,    /* no PCIDs: it is emptied */
    SWITCH_PCID,     /* each space has one of its own */
    SWITCH_ONE_PCID, /* one for all, as one could be shared by those that share the tables */
    SWITCHES,
};
/* Cycles of a load, when `turns` many address spaces take turns with these pages: linked, and with
 * tables of their own. */
struct cycles {
    double shared, private;
};
int visit_time(const struct spaces *spaces, uint64_t turns, enum switching how,
               const struct leaf *leaves, uint64_t count, unsigned rounds, struct cycles *cycles);
/* Whether user mode may do that to a page with such an entry. */
bool visit_may(uint64_t entry, enum loop loop);

#endif
