/*
 * own.c - what is left of a window; see own.h.
 *
 *   window   mmmmm..pppmmBBBBmm     m: .mem   B: a block of a file   p: the program's   .: unmapped
 *   parts    |---|     |------|     of OWN_ALL
 *
 * .mem is known by its inode. The files of blocks are not, since their descriptors may be closed by
 * now: any file that is mapped shared is taken for one, where there may be blocks.
 *
 * Runs in the shadow, too: no malloc, no stdio, no region memory.
 */
#define _GNU_SOURCE
#include "client/own.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#include "client/view.h"
#include "core/fd.h"
#include "core/procmap.h"
#include "core/slots.h"
#include "core/uffd.h"
#include "core/vma.h"

int own_maps(const struct attachment *att)
{
    return has_shadow(att) ? att->shadow.maps_fd : OWN_PROGRAM;
}

static bool is_own(const struct attachment *att, const struct procmap_query *map, enum own kind)
{
    if (map->inode == att->mem_inode && makedev(map->dev_major, map->dev_minor) == att->mem_device)
        return true;
    return kind == OWN_ALL && map->inode && map->vma_flags & PROCMAP_SHARED;
}

/* The first part of [*start, end), addresses, that is left: its bounds go to *start and *stop.
 * False: there is none. */
static bool next_part(const struct attachment *att, int maps, enum own kind, uint64_t *start,
                      uint64_t end, uint64_t *stop)
{
    struct procmap_query map;
    uint64_t at = *start;

    for (*stop = 0; at < end; at = map.end) {
        const int err = procmap_look(maps, at, &map);

        if (err && err != -ENOENT) { /* not to be known */
            map.start = at;
            map.end = end;
        } else if (err || map.start >= end) {
            break;
        } else if (!is_own(att, &map, kind)) {
            if (*stop)
                break;
            continue;
        }
        if (*stop && map.start > *stop)
            break;
        if (!*stop)
            *start = map.start > at ? map.start : at;
        *stop = map.end < end ? map.end : end;
    }
    return *stop;
}

int own_each(const struct attachment *att, int maps, enum own kind, uint64_t start, uint64_t end,
             int (*change)(void *arg, uint64_t start, uint64_t end), void *arg)
{
    if (!att->live) /* it is being attached: the program has not had it yet */
        return start < end ? change(arg, start, end) : 0;

    const int opened = maps == OWN_PROGRAM ? procmap_open("/proc/thread-self/maps") : -1;
    uint64_t at, last, stop, limit;
    int err = 0;

    maps = maps == OWN_PROGRAM ? opened : maps;
    for (int what; !err && start < end; start = limit) {
        limit = unshared_run(&att->unshared, start, end, &what);
        if (what == UNSHARED_GONE)
            continue;
        last = (uintptr_t)attachment_at(att, limit);
        for (at = (uintptr_t)attachment_at(att, start);
             !err && next_part(att, maps, kind, &at, last, &stop); at = stop)
            err = change(arg, attachment_offset(att, at), attachment_offset(att, stop));
    }
    fd_close(opened);
    return err;
}

static int found(void *any, uint64_t start, uint64_t end)
{
    (void)start, (void)end;
    *(bool *)any = true;
    return -EEXIST; /* that is enough */
}

bool own_any(const struct attachment *att)
{
    bool any = false;

    own_each(att, own_maps(att), OWN_ALL, att->offset, attachment_limit(att), found, &any);
    return any;
}

static int drop(void *att, uint64_t start, uint64_t end)
{
    return view_drop((uintptr_t)attachment_at(att, start), (uintptr_t)attachment_at(att, end));
}

int own_drop(const struct attachment *att, uint64_t start, uint64_t end)
{
    return own_each(att, own_maps(att), OWN_MEMORY, start, end, drop, (void *)(uintptr_t)att);
}

static int look_at(const struct attachment *att, uint64_t at, struct procmap_query *map)
{
    const int maps = own_maps(att);
    const int opened = maps == OWN_PROGRAM ? procmap_open("/proc/thread-self/maps") : -1;
    const int err = procmap_look(maps == OWN_PROGRAM ? opened : maps, at, map);

    fd_close(opened);
    return err;
}

int own_release(const struct attachment *att, uint64_t offset)
{
    const uint64_t at = (uintptr_t)attachment_at(att, offset);
    const uint64_t first = (uintptr_t)att->base, last = first + att->length;
    struct procmap_query map;
    const int err = look_at(att, at, &map);

    if (err || map.start > at)
        return !err || err == -ENOENT;
    if (is_own(att, &map, OWN_MEMORY))
        return 0;
    const uint64_t start = map.start > first ? map.start : first;
    const int unwatched = uffd_unwatch(att->uffd, start, (map.end < last ? map.end : last) - start);

    return unwatched && unwatched != -EINVAL ? unwatched : 1;
}

static int map_part(void *att, uint64_t start, uint64_t end)
{
    return view_map_part(att, start, end);
}

static int watch_part(void *arg, uint64_t start, uint64_t end)
{
    const struct attachment *att = arg;

    return uffd_watch(att->uffd, (uintptr_t)attachment_at(att, start), end - start);
}

int own_renew(struct attachment *att)
{
    const uint64_t start = att->offset, end = attachment_limit(att);
    int err = own_each(att, own_maps(att), OWN_ALL, start, end, map_part, att);

    if (!err)
        err = view_uffd(att, 0);
    if (err < 0)
        return err;
    att->uffd = err;
    return own_each(att, own_maps(att), OWN_MEMORY, start, end, watch_part, att);
}

struct part {
    struct attachment *att;
    int prot;
    bool object;
    bool keeps; /* what is mapped of it stays */
};

/* One part, of one mapping of the region. */
static int leave_part(void *arg, uint64_t start, uint64_t end)
{
    const struct part *part = arg;
    uint8_t *at = attachment_at(part->att, start);

    if (part->object && part->keeps)
        mprotect(at, end - start, PROT_NONE);
    else if (part->object) /* .mem has nothing of it */
        mmap(at, end - start, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
             -1, 0);
    else
        mprotect(at, end - start, unshared_prot(&part->att->unshared, start, part->prot));
    return 0;
}

static void leave_parts(struct part part, int maps, uint64_t start, uint64_t end)
{
    own_each(part.att, maps, part.object && !part.keeps ? OWN_ALL : OWN_MEMORY, start, end,
             leave_part, &part);
}

/* Each mapping of the region gets its rights. */
static void leave_vmas(struct attachment *att, int maps, bool keeps)
{
    uint64_t used = 0;
    const struct mm_vma *set = vma_snapshot(&att->mm, atomic_load(&att->mm.header->epoch), &used);

    for (uint64_t i = 0; set && i < used; i++) {
        struct mm_vma vma = set[i];

        if ((vma.start | vma.end) % PAGE_SIZE || !attachment_clip(att, &vma.start, &vma.end))
            continue;
        leave_parts(
            (struct part){att, view_block_prot(att, vma.flags, vma.start), vma.object, keeps}, maps,
            vma.start, vma.end);
    }
}

void own_leave(struct attachment *att, int maps, bool claimed)
{
    /* A refused page may be without. */
    leave_parts((struct part){att, att->prot, false, false}, maps, att->offset,
                attachment_limit(att));
    if (claimed)
        slot_enter(&att->mm, att->slot);
    leave_vmas(att, maps, false);
    if (claimed)
        slot_leave(&att->mm, att->slot);
}

void own_restrict(struct attachment *att) { leave_vmas(att, OWN_PROGRAM, true); }

static int is_whole(void *any, uint64_t start, uint64_t end)
{
    const struct attachment *att = any;

    return start == att->offset && end == attachment_limit(att) ? 0 : -EINVAL;
}

bool own_whole(const struct attachment *att)
{
    return !own_each(att, own_maps(att), OWN_MEMORY, att->offset, attachment_limit(att), is_whole,
                     (void *)(uintptr_t)att);
}
