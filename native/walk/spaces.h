/*
 * spaces.h - address spaces of the machine. Each has two pages of its own, PGD and the PUD table of
 * its low memory, and links the region's PUD table at its first access, as a process would that has
 * the region mapped. Functions return 0 or -errno unless the comment says otherwise.
 */
#ifndef MSHARE_WALK_SPACES_H
#define MSHARE_WALK_SPACES_H

#include <stdbool.h>

#include "walk/machine.h"
#include "walk/region.h"

/* Of a space with tables of its own: PGD, PUD, PMD and PTE table. */
#define SPACES_PRIVATE_PAGES 4u

struct spaces {
    struct machine *machine;
    const struct region *region;
    uint64_t count, private;
};

/* Bytes of low memory that so many spaces take, `private` of them also with their own tables. */
uint64_t spaces_bytes(uint64_t count, uint64_t private);
void spaces_make(struct spaces *spaces);
/* The PGD of a space. */
uint64_t space_pgd(const struct spaces *spaces, uint64_t number);
/* Links what the region's PGD has for `address`. False: it is linked already, or there is
 * nothing. Precondition: inside a run. */
bool space_link(const struct spaces *spaces, uint64_t number, uint64_t address);
/* All spaces lose their links. */
void spaces_unlink(const struct spaces *spaces);
/* The PGD of a space with tables of its own. */
uint64_t space_private_pgd(const struct spaces *spaces, uint64_t number);
/* Puts these entries, all of one 2 MiB span, into its own tables. */
void space_copy(const struct spaces *spaces, uint64_t number, const struct leaf *leaves,
                uint64_t count);

#endif
