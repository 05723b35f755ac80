/*
 * check.h - the arguments of an mmap(2) of a region file, and what the kernel checks of them.
 */
#ifndef MSHARE_CHECK_H
#define MSHARE_CHECK_H

#include <stdint.h>

#include "core/layout.h"

/* The arguments of mmap(2). */
struct attach_request {
    void *addr;
    /* Bytes; rounded up to a page it must be the region's size. 0: whatever that is. */
    uint64_t length;
    uint64_t offset; /* into the file: without effect, but checked as by the kernel */
    int prot, flags;
    enum attach_way way; /* adopted: `length` may be less than the region's size */
};

/* What mmap(2) checks after it has found a place, in its order. `mode` is that of
 * the descriptor (O_ACCMODE), `length` the window's. Returns 0 or -errno.
 * Precondition: none. */
int check_attach(int fd, int mode, const struct attach_request *request, uint64_t length);

#endif
