/* spare.c - mappings that differ in their protection, and thus do not merge; see spare.h. */
#define _GNU_SOURCE
#include "client/spare.h"

#include <stddef.h>
#include <sys/mman.h>

#include "core/layout.h"

#define PAGES 5u

uint8_t *spare_make(void)
{
    uint8_t *spare = mmap(NULL, PAGES * PAGE_SIZE, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (spare == MAP_FAILED)
        return NULL;
    madvise(spare, PAGES * PAGE_SIZE, MADV_DONTDUMP);
    spare_take(spare);
    return spare;
}

/* One mapping is left. It is not unmapped: that could take one more, for a neighbour that merged
 * with it. */
void spare_give(uint8_t *spare)
{
    if (spare)
        mprotect(spare, PAGES * PAGE_SIZE, PROT_NONE);
}

void spare_take(uint8_t *spare)
{
    for (unsigned i = 1; spare && i < PAGES; i += 2)
        mprotect(spare + i * PAGE_SIZE, PAGE_SIZE, PROT_READ);
}

void spare_free(uint8_t *spare)
{
    if (spare)
        munmap(spare, PAGES * PAGE_SIZE);
}
