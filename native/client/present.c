/* present.c - see present.h. */
#define _GNU_SOURCE
#include "client/present.h"

#include <string.h>
#include <sys/mman.h>

#include "client/request.h"
#include "core/entries.h"
#include "core/pagetable.h"
#include "core/slots.h"

struct presence {
    uint64_t start, end; /* host addresses */
    unsigned char *vec;
    uint64_t pages;
};

static int collect(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct presence *found = walk->arg;
    uint64_t end = addr + entry_span(level);

    if (!(atomic_load_explicit(entry, memory_order_relaxed) & ENTRY_PRESENT))
        return 0;
    if (addr < found->start)
        addr = found->start;
    if (end > found->end)
        end = found->end;
    found->pages += (end - addr) / PAGE_SIZE;
    if (found->vec)
        memset(found->vec + (addr - found->start) / PAGE_SIZE, 1, (end - addr) / PAGE_SIZE);
    return 0;
}

static int skip(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    (void)walk, (void)entry, (void)level, (void)addr;
    return 0;
}

int present_catch_up(struct attachment *att, uint64_t start, uint64_t end)
{
    int64_t found;

    slot_enter(&att->mm, att->slot);
    found = entries_catch_up(&att->mm, att->slot, att->mem_fd, start, end, ENTRIES_NOW);
    slot_leave(&att->mm, att->slot);
    return found < 0 ? (int)found : 0;
}

/* Nobody keeps entries of what this process touches: the pages that the window has. */
static uint64_t resident(const struct attachment *att, uint64_t start, uint64_t end,
                         unsigned char *vec)
{
    unsigned char some[SPAN_PAGES];
    uint64_t pages = 0;

    for (uint64_t at = start, next; at < end; at = next) {
        unsigned char *part = vec ? vec + (at - start) / PAGE_SIZE : some;

        next = at + PMD_SIZE < end ? at + PMD_SIZE : end;
        if (mincore(attachment_at(att, at), next - at, part))
            continue;
        for (uint64_t i = 0; i < (next - at) / PAGE_SIZE; i++)
            pages += part[i] & 1;
    }
    return pages;
}

uint64_t present_pages(struct attachment *att, uint64_t start, uint64_t end, unsigned char *vec)
{
    const uint64_t quantum = att->mm.quantum;
    struct presence found = {0};
    struct walk walk = {.mm = &att->mm, .leaf = collect, .bad = skip, .arg = &found};

    if (vec)
        memset(vec, 0, (end - start) / PAGE_SIZE);
    if (att->served == BY_NOBODY)
        return resident(att, start, end, vec);
    if (!att->reader && atomic_load(&att->mm.header->unwatched)) {
        if (has_shadow(att))
            request(att, REQUEST_ENTRIES, start, end);
        else
            present_catch_up(att, start, end);
    }
    slot_enter(&att->mm, att->slot);
    for (uint64_t at = start, next; at < end; at = next) {
        const uint64_t number = at / quantum;

        next = (number + 1) * quantum < end ? (number + 1) * quantum : end;
        if (!(att->linked[number / 64] & 1ull << number % 64))
            continue;
        found.start = HOST_BASE + at;
        found.end = HOST_BASE + next < att->mm.host_end ? HOST_BASE + next : att->mm.host_end;
        found.vec = vec ? vec + (at - start) / PAGE_SIZE : NULL;
        if (found.start < found.end)
            walk_range(&walk, found.start, found.end);
    }
    slot_leave(&att->mm, att->slot);
    return found.pages;
}

/* The entries of a 2 MiB span, one bit for each. */
struct span_bits {
    uint64_t start; /* host address */
    uint64_t bits[SPAN_PAGES / 64];
};

static int mark(struct walk *walk, _Atomic uint64_t *entry, unsigned level, uint64_t addr)
{
    struct span_bits *span = walk->arg;
    const uint64_t page = (addr - span->start) / PAGE_SIZE;

    if (!level && atomic_load_explicit(entry, memory_order_relaxed) & ENTRY_PRESENT)
        span->bits[page / 64] |= 1ull << page % 64;
    return 0;
}

static struct span_bits look_at_span(struct mm *mm, uint64_t offset)
{
    struct span_bits span = {.start = HOST_BASE + (offset & ~(PMD_SIZE - 1))};
    struct walk walk = {.mm = mm, .leaf = mark, .arg = &span};
    const uint64_t end = span.start + PMD_SIZE;

    /* A broken table ends the walk: pages behind it are absent. */
    walk_range(&walk, span.start, end < mm->host_end ? end : mm->host_end);
    return span;
}

static bool has(const struct span_bits *span, uint64_t page)
{
    return span->bits[page / 64] >> page % 64 & 1;
}

uint64_t present_end(struct mm *mm, uint64_t from, uint64_t limit)
{
    uint64_t at = from;

    while (at < limit) {
        const struct span_bits span = look_at_span(mm, at);
        uint64_t page = at % PMD_SIZE / PAGE_SIZE;

        for (; page < SPAN_PAGES && has(&span, page); page++)
            at += PAGE_SIZE;
        if (page < SPAN_PAGES)
            break;
    }
    return at < limit ? at : limit;
}

uint64_t present_begin(struct mm *mm, uint64_t from, uint64_t limit)
{
    uint64_t at = from;

    while (at > limit) {
        const struct span_bits span = look_at_span(mm, at - PAGE_SIZE);
        uint64_t page = (at - PAGE_SIZE) % PMD_SIZE / PAGE_SIZE + 1;

        for (; page && has(&span, page - 1); page--)
            at -= PAGE_SIZE;
        if (page)
            break;
    }
    return at > limit ? at : limit;
}
