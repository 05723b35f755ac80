/*
 * region.h - the region whose tables are walked. Functions return 0 or -errno.
 *
 * The machine walks the real table frames, and its walks set accessed and dirty bits there. That is
 * safe because each run of it is to the host mm what a fault of a client is (core/slots.h):
 *
 *   - it runs inside an epoch, so the server takes no entry and frees no frame meanwhile;
 *   - it does not run while a VMA is busy, that is, while rights or entries are being changed;
 *   - what it has remembered of the tables is forgotten when the epoch is another one, before it
 *     runs again: no walk ever leads through a frame that has been freed;
 *   - a walk changes an entry by compare-and-swap, only one that is present, and only by those two
 *     bits, which every reader of entries expects to change (core/fault.c);
 *   - its loops load, or store a locked OR of 0: contents stay, whoever else stores.
 *
 * For this the process is a client like any other, with a slot. It never touches its window, so its
 * service thread takes no fault, and the slot's epoch is free for our use.
 */
#ifndef MSHARE_WALK_REGION_H
#define MSHARE_WALK_REGION_H

#include <stdbool.h>
#include <stdint.h>

#include "core/mm.h"

struct machine;

struct leaf {
    uint64_t address; /* host address */
    uint64_t entry;
};

struct region {
    struct mm *mm;
    unsigned slot;
    uint8_t *mem;   /* its memory, mapped past the window */
    uint64_t epoch; /* at which `leaves` were found */
    struct leaf *leaves;
    uint64_t count, room;
    uint64_t *known; /* once a machine has the memory: the addresses of all that it has */
    uint64_t known_count;
    uint64_t of_files; /* entries of objects, and 2 MiB pages: left out */
};

/* Attaches the region at `path`. *failed: what could not be done. */
int region_open(struct region *region, const char *path, const char **failed);
/* Waits until no change is going on, and lists all entries of its own memory; later ones only where
 * the machine has memory. */
int region_look(struct region *region);
/* Gives a machine the frames, and the memory where there are entries. After region_look(). */
int region_add(struct region *region, struct machine *machine);
/* Begins a run of the machine. EAGAIN: the region has been changed since region_look(). */
int region_enter(const struct region *region);
void region_leave(const struct region *region);
/* Whether it has been changed since region_look(). */
bool region_changed(const struct region *region);
/* A word of the page, a different place in each. */
uint64_t region_word(const struct region *region, uint64_t address);
/* The address of that word. */
uint64_t region_place(uint64_t address);
/* The entry at `address` now; 0: none. Precondition: inside a run. */
uint64_t region_entry(const struct region *region, uint64_t address);

#endif
