/* pieces.c - the address ranges that are left of a window; see pieces.h. */
#include "client/pieces.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int pieces_init(struct pieces *pieces, uint64_t start, uint64_t end)
{
    *pieces = (struct pieces){0};
    if (pieces_reserve(pieces))
        return -ENOMEM;
    pieces->list[0] = (struct piece){start, end, false};
    pieces->count = 1;
    return 0;
}

void pieces_free(struct pieces *pieces)
{
    free(pieces->list);
    *pieces = (struct pieces){0};
}

bool pieces_hold(const struct pieces *pieces, uint64_t addr)
{
    for (unsigned i = 0; i < pieces->count; i++)
        if (addr >= pieces->list[i].start && addr < pieces->list[i].end)
            return true;
    return false;
}

int pieces_reserve(struct pieces *pieces)
{
    const unsigned wanted = pieces->count + 2; /* a mark may split at both ends */

    if (pieces->room >= wanted)
        return 0;
    struct piece *list = realloc(pieces->list, 2 * wanted * sizeof *list);
    if (!list)
        return -ENOMEM;
    pieces->list = list;
    pieces->room = 2 * wanted;
    return 0;
}

/* Splits the piece that `at` is inside of, so that a piece begins there. */
static void split(struct pieces *pieces, uint64_t at)
{
    for (unsigned i = 0; i < pieces->count; i++) {
        struct piece *piece = &pieces->list[i];

        if (at <= piece->start || at >= piece->end)
            continue;
        memmove(piece + 1, piece, (pieces->count - i) * sizeof *piece);
        piece[0].end = piece[1].start = at;
        pieces->count++;
        return;
    }
}

static void keep(struct pieces *pieces, bool (*wanted)(const struct piece *, const void *),
                 const void *arg)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < pieces->count; i++)
        if (wanted(&pieces->list[i], arg))
            pieces->list[kept++] = pieces->list[i];
    pieces->count = kept;
}

static bool outside(const struct piece *piece, const void *arg)
{
    const struct piece *range = arg;

    return piece->end <= range->start || piece->start >= range->end;
}

static bool goes(const struct piece *piece, const void *unused)
{
    (void)unused;
    return !piece->stays;
}

void pieces_cut(struct pieces *pieces, uint64_t start, uint64_t end)
{
    const struct piece range = {start, end, false};

    split(pieces, start);
    split(pieces, end);
    keep(pieces, outside, &range);
}

void pieces_grow(struct pieces *pieces, uint64_t from, uint64_t to)
{
    for (unsigned i = 0; i < pieces->count; i++)
        if (pieces->list[i].end == from && to > from)
            pieces->list[i].end = to;
}

void pieces_mark(struct pieces *pieces, uint64_t start, uint64_t end, bool stays)
{
    split(pieces, start);
    split(pieces, end);
    for (unsigned i = 0; i < pieces->count; i++)
        if (pieces->list[i].start >= start && pieces->list[i].end <= end)
            pieces->list[i].stays = stays;
}

void pieces_fork(struct pieces *pieces) { keep(pieces, goes, NULL); }
