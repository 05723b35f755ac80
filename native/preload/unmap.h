/*
 * unmap.h - munmap(2) and its relatives, of windows.
 */
#ifndef MSHARE_PRELOAD_UNMAP_H
#define MSHARE_PRELOAD_UNMAP_H

#include "msharefs.h"
#include "preload/range.h"

/* munmap(2) of a range, returns 0 or -errno. Precondition: the table's lock held. */
int preload_unmap(struct range range);
/* Only newer C libraries declare it. */
MSHARE_API int mseal(void *addr, size_t length, unsigned long flags);

#endif
