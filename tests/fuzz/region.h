/*
 * region.h - a valid host mm for every input, and damage done to it.
 */
#ifndef FUZZ_REGION_H
#define FUZZ_REGION_H

#include "core/mm.h"
#include "input.h"

/* Its state before each input. */
enum region_shape { REGION_SMALL, REGION_LARGE, REGION_HUGE, REGION_SHAPES };

struct region {
    struct mm mm; /* open */
    int mem_fd;
    unsigned slot; /* of a client that has touched something */
};

/* Makes the region anew: mapped, touched, valid. It stays open. Ends the process if that fails. */
void region_make(struct region *region, enum region_shape shape);
/* Overwrites one place that the core reads with a value that `input` chooses. */
void region_scribble(struct region *region, struct input *input);
/* A region offset: of a mapped page, or any. */
uint64_t region_offset(const struct region *region, struct input *input);

#endif
