/*
 * from.h - private memory of the program becomes memory of a region: what mshare_map() does with
 * MSHARE_MAP_FROM, but for the attachment.
 */
#ifndef MSHARE_FROM_H
#define MSHARE_FROM_H

#include <stdbool.h>
#include <stdint.h>

/* A range of the program's private memory, and where in a region it goes. */
struct from {
    int fd; /* of the region */
    uint64_t addr, offset, size;
    int prot;
    int maps;       /* our /proc/PID/maps; -1: none */
    int store_uffd; /* stores into the range wait for it; -1: none */
    bool created;   /* the region has memory there */
};

/* Checks the range, and puts a copy of it into the region, where nothing may be mapped: -EEXIST.
 * Other threads may read it meanwhile; if they store into anonymous memory of it, they wait for
 * from_end(). 0 or -errno, and then from_end() is called all the same. Precondition: the first
 * five fields are set. */
int from_copy(struct from *from);
/* A window has taken the range's place, or, if `failed`, none has: takes the copy out again. Stores
 * go on. Precondition: from_copy() was called. */
void from_end(struct from *from, bool failed);

#endif
