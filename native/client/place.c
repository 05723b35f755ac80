/* place.c - private memory whose place a window takes; see place.h. */
#define _GNU_SOURCE
#include "client/place.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/attachments.h"
#include "core/fd.h"
#include "core/procmap.h"

static int prot_of(const struct procmap_query *map)
{
    return (map->vma_flags & PROCMAP_READABLE ? PROT_READ : 0) |
           (map->vma_flags & PROCMAP_WRITABLE ? PROT_WRITE : 0) |
           (map->vma_flags & PROCMAP_EXECUTABLE ? PROT_EXEC : 0);
}

static int look(const struct attachment *att, struct place *place, int maps)
{
    const uint64_t end = attachment_end(att);
    struct procmap_query map;

    for (uint64_t at = (uintptr_t)att->base; at < end; at = map.end) {
        const int err = procmap_covering(maps, at, &map);
        struct was *more = err ? NULL
                               : realloc(place->list, (place->count + 1) * sizeof *place->list);

        if (!more)
            return !err || err == -ENOENT ? -ENOMEM : err;
        place->list = more;
        place->list[place->count++] = (struct was){map.end < end ? map.end : end, prot_of(&map)};
    }
    return 0;
}

int place_look(const struct attachment *att, struct place *place)
{
    const int maps = procmap_open("/proc/thread-self/maps");
    int err = maps < 0 ? maps : look(att, place, maps);

    if (!err && attachment_over((uintptr_t)att->base, attachment_end(att)))
        err = -EINVAL; /* a reader's window is private memory, too */
    fd_close(maps);
    if (err)
        return err;
    place->room = mmap(NULL, att->length, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place->room == MAP_FAILED)
        place->room = NULL;
    return place->room ? 0 : -ENOMEM;
}

static void copy(const struct attachment *att, uint8_t *to)
{
    const off_t limit = (off_t)attachment_limit(att);
    off_t at = (off_t)att->offset, end;

    while ((at = lseek(att->mem_fd, at, SEEK_DATA)) >= 0 && at < limit) {
        end = lseek(att->mem_fd, at, SEEK_HOLE);
        end = end < 0 || end > limit ? limit : end;
        while (at < end) {
            const ssize_t got = pread(att->mem_fd, to + (at - (off_t)att->offset),
                                      (size_t)(end - at), at);

            if (got <= 0)
                return;
            at += got;
        }
    }
}

void place_restore(const struct attachment *att, struct place *place)
{
    uint64_t at = (uintptr_t)att->base;

    copy(att, place->room);
    for (unsigned i = 0; i < place->count; at = place->list[i++].end)
        mprotect(place->room + (at - (uintptr_t)att->base), place->list[i].end - at,
                 place->list[i].prot);
    mremap(place->room, att->length, att->length, MREMAP_MAYMOVE | MREMAP_FIXED, att->base);
    place->room = NULL;
}

void place_forget(const struct attachment *att, struct place *place)
{
    if (place->room)
        munmap(place->room, att->length);
    free(place->list);
    *place = (struct place){0};
}
