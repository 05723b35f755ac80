/* walk/spaces.c - see spaces.h. */
#include "walk/spaces.h"

#include "core/frames.h"
#include "core/pagetable.h"

enum { PAGES = 2, PGD_LEVEL = 3 };

#define LINK (ENTRY_PRESENT | ENTRY_RW | ENTRY_USER)

static unsigned index_of(uint64_t address, unsigned level)
{
    return address / entry_span(level) & 511;
}

uint64_t spaces_bytes(uint64_t count, uint64_t private)
{
    return SPACES_AT + (count * PAGES + private * SPACES_PRIVATE_PAGES) * PAGE_SIZE;
}

uint64_t space_pgd(const struct spaces *spaces, uint64_t number)
{
    (void)spaces;
    return SPACES_AT + number * PAGES * PAGE_SIZE;
}

void spaces_make(struct spaces *spaces)
{
    for (uint64_t i = 0; i < spaces->count; i++) {
        const uint64_t pgd = space_pgd(spaces, i);

        machine_table(spaces->machine, pgd)[0] = (pgd + PAGE_SIZE) | LINK;
        machine_table(spaces->machine, pgd + PAGE_SIZE)[0] = LOW_PMD | LINK;
    }
}

bool space_link(const struct spaces *spaces, uint64_t number, uint64_t address)
{
    uint64_t *entry = &machine_table(spaces->machine,
                                     space_pgd(spaces, number))[index_of(address, PGD_LEVEL)];
    const _Atomic uint64_t *root = frame_entries(spaces->region->mm, 0);
    const uint64_t found = atomic_load(&root[index_of(address, PGD_LEVEL)]);

    if (*entry || !frame_table(spaces->region->mm, found, PGD_LEVEL - 1, address))
        return false;
    *entry = found;
    return true;
}

void spaces_unlink(const struct spaces *spaces)
{
    for (uint64_t i = 0; i < spaces->count; i++)
        for (unsigned entry = 1; entry < 512; entry++)
            machine_table(spaces->machine, space_pgd(spaces, i))[entry] = 0;
}

uint64_t space_private_pgd(const struct spaces *spaces, uint64_t number)
{
    return space_pgd(spaces, spaces->count) + number * SPACES_PRIVATE_PAGES * PAGE_SIZE;
}

void space_copy(const struct spaces *spaces, uint64_t number, const struct leaf *leaves,
                uint64_t count)
{
    uint64_t table = space_private_pgd(spaces, number);

    /* The low memory is that of the space with the same number. */
    machine_table(spaces->machine, table)[0] = (space_pgd(spaces, number) + PAGE_SIZE) | LINK;
    for (unsigned level = PGD_LEVEL; level > 0; level--, table += PAGE_SIZE)
        machine_table(spaces->machine,
                      table)[index_of(leaves->address, level)] = (table + PAGE_SIZE) | LINK;
    for (uint64_t i = 0; i < count; i++)
        machine_table(spaces->machine, table)[index_of(leaves[i].address, 0)] = leaves[i].entry;
}
