/*
 * check.h - the arguments of an mmap(2) of a region file, and the kernel's checks of them.
 */
#ifndef MSHARE_CHECK_H
#define MSHARE_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/layout.h"

/* The arguments of mmap(2). */
struct attach_request {
    void *addr;
    /* Bytes, rounded up to a page, and where in the region: whole quanta. 0: the rest. */
    uint64_t length;
    uint64_t offset;
    int prot, flags;
    bool from;           /* the window takes the place of private memory with the same bytes */
    enum attach_way way; /* adopted: `length` may be less than the region's size */
};

/* Makes the checks of mmap(2) that follow its search for a place, in their order. `mode` is
 * the descriptor's (O_ACCMODE), `length` the window's. Returns 0 or -errno.
 * Precondition: none. */
int check_attach(int fd, int mode, const struct attach_request *request, uint64_t length);

#endif
