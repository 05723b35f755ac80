/*
 * pieces.h - the parts that are left of a window which the program may unmap bit by bit:
 * a sorted list of address ranges without overlap.
 *
 *   AAAAAAAA    cut [2, 4)  ->    AA..AAAA     two pieces
 *
 * For adopted shared memory (attachment.h). Functions return 0 or -errno.
 */
#ifndef MSHARE_PIECES_H
#define MSHARE_PIECES_H

#include <stdbool.h>
#include <stdint.h>

struct piece {
    uint64_t start, end; /* addresses, page aligned */
    bool stays;          /* children of fork() do not get it: MADV_DONTFORK */
};

struct pieces {
    struct piece *list;
    unsigned count, room;
};

/* Makes a list of one piece. -ENOMEM. */
int pieces_init(struct pieces *pieces, uint64_t start, uint64_t end);
void pieces_free(struct pieces *pieces);
bool pieces_hold(const struct pieces *pieces, uint64_t addr);
/* Makes room for a cut or a mark, which then cannot fail. -ENOMEM. */
int pieces_reserve(struct pieces *pieces);
/* Takes [start, end) out. */
void pieces_cut(struct pieces *pieces, uint64_t start, uint64_t end);
/* Lets the piece that ends at `from` end at `to`. */
void pieces_grow(struct pieces *pieces, uint64_t from, uint64_t to);
/* Sets `stays` of the pieces in [start, end). */
void pieces_mark(struct pieces *pieces, uint64_t start, uint64_t end, bool stays);
/* Leaves the pieces that a child of fork() has. */
void pieces_fork(struct pieces *pieces);

#endif
