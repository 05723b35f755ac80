/*
 * spare.h - a few mappings in reserve. A process may have vm.max_map_count of them, and one that
 * has so many could neither be refused an access nor see a file: both take a mapping of their own.
 */
#ifndef MSHARE_SPARE_H
#define MSHARE_SPARE_H

#include <stdint.h>

/* Makes a reserve. NULL: there is no room; then there is none. Precondition: none. */
uint8_t *spare_make(void);
/* Gives it up, so that there is room for one or two mappings. Precondition: none. */
void spare_give(uint8_t *spare);
/* Has it again, if there is room. Precondition: none. */
void spare_take(uint8_t *spare);
/* Precondition: nobody uses it any more. */
void spare_free(uint8_t *spare);

#endif
