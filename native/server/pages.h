/*
 * pages.h - the pages of a file that a region has mapped, by way of a mapping of the server's own:
 * madvise(2), mincore(2), mlock(2), mbind(2). Functions return 0 or -errno.
 *
 * They may wait for the file's storage, so they are for threads; and the file system must not be
 * one that a process serves, for Linux holds locks of our address space meanwhile.
 *
 * Precondition of all: `offset` and `size` are multiples of the page size.
 */
#ifndef MSHARE_PAGES_H
#define MSHARE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

/* How to go about it. */
enum pages_how {
    PAGES_SPARSE = 1, /* look for pages by lseek(2): the descriptor's position is nobody else's */
    PAGES_HUGE = 2,   /* new pages are to be huge, where the file's memory can be */
    PAGES_READ = 4,   /* the descriptor is open for reading only */
};

/* madvise(2) of a part of the file. MADV_COLD and MADV_PAGEOUT reach the pages that are in memory,
 * if nobody else has them mapped. */
int pages_advise(int fd, uint64_t offset, uint64_t size, int advice, unsigned how);
/* Which pages are in memory, as mincore(2): a byte for each, whose lowest bit says so. */
int pages_resident(int fd, uint64_t offset, uint64_t size, uint8_t *vec);
/* Maps and locks a part of the file, which brings all of it into memory, until pages_unlock() of
 * the address, or of a part of it. */
int pages_lock(int fd, uint64_t offset, uint64_t size, unsigned how, uint64_t *address);
void pages_unlock(uint64_t address, uint64_t size);
/* mbind(2) of a part of the file, whoever makes its pages from now on. `maxnode` as there. */
int pages_bind(int fd, uint64_t offset, uint64_t size, int mode, const uint64_t *nodes,
               uint64_t maxnode, unsigned flags, unsigned how);
/* get_mempolicy(2) of the page at `offset`: its mode, or -errno. `nodes` are those of `maxnode`. */
int pages_policy(int fd, uint64_t offset, uint64_t *nodes, uint64_t maxnode);

#endif
