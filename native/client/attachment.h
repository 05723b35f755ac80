/*
 * attachment.h - one attached region of this process: the types and the locks, and no
 * functions. Internal to the client (native/client/, native/preload/).
 *
 * Locks, all private to the address space, outermost first:
 *
 *   the table's lock    attachments_lock(): who is attached where. Attach, detach, fork and
 *                       every change of the address space that concerns a window hold it
 *   att->lock           the attachment, while an event of it is handled
 *
 * The service thread, or a shadow (shadow.h), never takes the first. Several att->lock are taken
 * in the order of the table; fork() holds all of them while it copies the process (fork.c).
 *
 * What protects a field stands beside it:
 *
 *   [fixed]   set before the attachment is live, and by a forked child before it goes on;
 *             not changed after that
 *   [att]     att->lock
 *   [table]   the table's lock
 *   [both]    written with both locks, read with either
 *
 * Where an attachment has a shadow, its descriptors are numbers of the shadow's table, once that
 * runs; the program has none.
 */
#ifndef MSHARE_ATTACHMENT_H
#define MSHARE_ATTACHMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "client/lock.h"
#include "client/pieces.h"
#include "client/shadow.h"
#include "client/unshared.h"
#include "core/control.h"
#include "core/fault.h"
#include "core/layout.h"
#include "core/mm.h"
#include "core/protocol.h"

/* Who takes the faults of an attachment. */
enum served_by {
    BY_THREAD, /* service.h */
    BY_SHADOW, /* shadow.h */
    BY_NOBODY, /* under valgrind, and in a child of fork(2) that could have neither: see fork.c */
};

/* Guard pages at one time; each may split a mapping in two. */
#define POISONS_MAX 32

/* How a page was made to fault natively, and thus how it is unguarded. */
enum poison_kind { POISON_GUARD, POISON_PROT, POISON_BUS, POISON_MARK };

struct poison {
    uint64_t offset;
    enum poison_kind kind;
};

/* Descriptors of objects that are kept; others are asked for again when needed. */
#define OBJECTS_MAX 64

enum object_state {
    OBJECT_NONE,
    OBJECT_ASKED,  /* threads wait for it */
    OBJECT_LOST,   /* they go on waiting: it could not be had, and is asked for again soon */
    OBJECT_HELD,   /* `fd` is its descriptor */
    OBJECT_FAILED, /* the server has no object of that number */
};

struct object {
    enum object_state state;
    uint32_t number; /* the server's number of it */
    bool writing;    /* asked for by a fault that may write; otherwise it may be read-only */
    int fd;
    /* Identity of `fd` when it came. A fork() may have happened between its arrival and
     * this record, and programs close descriptors that are not theirs. */
    uint64_t device, inode;
};

/* Questions that may be open (asked.h): one for each page that threads wait for. */
#define ASKED_MAX 64

struct asked {
    uint64_t offset, limit, ahead; /* of a reader: as in struct fault_ask */
    uint64_t bytes;                /* of others: the pages that are to be made (charge.h) */
    bool open;
};

/* The flags that madvise(2) has set on a window, as it would on the kernel's VMA. */
enum advice {
    ADVICE_RANDOM = 1,
    ADVICE_SEQUENTIAL = 2,
    ADVICE_DONTFORK = 4,
    ADVICE_DONTDUMP = 8,
    ADVICE_HUGEPAGE = 16,
    ADVICE_NOHUGEPAGE = 32,
};

#define AROUND_SPANS 512 /* enough for 1 GiB in use */

/* How far a fault looks beyond its page (around.c). */
struct around {
    bool far;       /* a fault costs a question to the server: look at a whole span at once */
    uint64_t next;  /* the region offset that would be sequential */
    uint64_t pages; /* length of the next sequential run */
    /* Random access: recent 2 MiB spans, by number modulo AROUND_SPANS. */
    struct recent {
        uint32_t span;   /* region offset / PMD_SIZE */
        uint32_t faults; /* 0: nothing is known of it */
        uint32_t looked; /* FAULT_BLOCKs of it that a fault has looked at, one bit for each */
    } recent[AROUND_SPANS];
};

/* A 2 MiB span of the region, which takes one page table while it is mapped. */
struct span {
    uint32_t next;   /* in the queue: number + 1; 0: it is the last */
    uint32_t turn;   /* budget.turn when it was given back */
    uint8_t state;   /* enum span_state (budget.c) */
    uint8_t proved;  /* how often in a row it came back soon, which proves it in use */
    uint8_t credit;  /* how often the search for a victim will pass it over */
    uint8_t owed;    /* faults to come that giving it back has caused */
    uint32_t sample; /* budget.sample if it was given back as a sample; 0: it was not */
    uint16_t handed_from, handed_to; /* pages that are not watched (handover.c); equal: none */
};

/* A budget of page tables (budget.c). */
struct budget {
    struct span *spans; /* one for each of the region's spans; sparse. NULL: no budget */
    uint64_t spans_bytes;
    uint8_t *reserved, *scratch; /* 2 MiB of address space at a multiple of that */
    uint32_t first, last;        /* the queue of mapped spans: number + 1; 0: empty */
    uint32_t used;               /* spans in the queue */
    uint32_t handed;             /* spans with pages that are not watched, all in the queue */
    uint32_t asked, limit;       /* spans; limit >= asked */
    uint32_t turn;               /* spans given back so far, modulo 2^32 */
    /* The cost of coming back, since the last look at the clocks. */
    bool weighing;
    uint64_t lost;           /* faults that the budget has caused */
    uint64_t answered;       /* faults that a shadow has answered */
    uint64_t faults;         /* all faults that were answered by then */
    uint64_t own_ns, all_ns; /* CPU time by then: our own, and with that of the program */
    int64_t allowed_ns;      /* time that may still be lost before the budget grows */
    uint32_t sample, sampled, returned; /* last sample: its number, its spans, those back */
    uint64_t period_ms, due_ms;         /* between samples; when the next is due */
    uint64_t since_ns, seen_ns;         /* CPU time of the program: at that time or when the
                                         * budget grew; lately */
};

/* Each run may split a mapping of the process in two. */
#define HANDED_MAX 256u

/* Runs of pages that are not watched: Linux serves them without us (handover.c). Used if there
 * is no budget, which keeps them with its spans. Region offsets; runs neither overlap nor
 * adjoin. */
struct handed {
    struct handed_run {
        uint64_t start, end;
    } runs[HANDED_MAX];
    unsigned count;
};

struct attachment {
    struct lock lock;
    bool live;   /* [both] it is in the table */
    bool asking; /* [table] it is about to be: its server is being asked, with `ends` */
    struct control_ends ends; /* [table] */
    enum served_by served;    /* [fixed] */
    struct shadow shadow;
    struct mm mm; /* [fixed] except for mm.fd, which is like the descriptors below */
    int mem_fd;   /* [both] the pages */
    uint64_t mem_device, mem_inode; /* [fixed] of that file */
    int dev_fd;          /* [both] /dev/userfaultfd, for children; -1: uffd_new() does without */
    int uffd;            /* [both] */
    int moved_uffd;      /* [att] of memory that arrange.c has moved into the window; -1: none */
    int ctl;             /* [att] control connection; -1: the server is away */
    uint8_t *base;       /* [fixed] */
    uint64_t offset;     /* [fixed] region offset of `base`: it may be a part that is attached */
    uint64_t length;     /* [both] of the window, bytes: whole quanta, unless it is adopted */
    enum attach_way way; /* [fixed] */
    int asked;           /* [fixed] PROT_* of the attachment */
    int prot;            /* [fixed] PROT_* of the window: the same, or all with -o quirks=v3 */
    bool inner;          /* [fixed] ordinary calls on the window are for the region */
    bool private;        /* [fixed] or for the process alone (private.h) */
    bool writable;       /* [fixed] the descriptor that was mapped is open for writing */
    bool reader;         /* [fixed] .mm and .mem are open for reading only (reader.c) */
    bool charged;        /* [fixed] pages are made at the owner's expense (charge.h) */
    uint8_t *own;        /* [fixed] of a reader: its slot, and the bitmap of it */
    struct asked asked_faults[ASKED_MAX]; /* [att] */
    unsigned slot;                        /* [fixed] */
    uint64_t claim;                       /* [fixed] of the slot, as it was given */
    uint64_t *linked;                     /* [att] one bit for each quantum; the pointer [fixed] */
    struct around around;                 /* [att] what to map beside a page that faults */
    struct poison poisons[POISONS_MAX];   /* [att] a ring */
    unsigned poisons_at, poisons_used;    /* [att] */
    uint8_t *spare;                       /* [att] mappings in reserve (spare.h) */
    struct budget budget;                 /* [att] */
    struct object objects[OBJECTS_MAX];   /* [att] */
    unsigned objects_at;                  /* [att] the next one to be replaced */
    uint64_t objects_again_ms;            /* [att] when a shadow is to ask again; 0: never */
    uint64_t unfit_ms; /* [att] until when to ask anew for unfit ones; 0: none was */
    struct memory_policy {
        int mode; /* MPOL_* */
        unsigned long nodes;
    } policy;        /* [table] the policy that mbind(2) gave the whole; for the preload library */
    bool sealed;     /* [table] mseal(2); for the preload library */
    unsigned advice; /* [both] enum advice, from madvise(2) (preload library) */
    struct pieces pieces;     /* [both] of adopted memory: the parts left of the window */
    struct unshared unshared; /* [both] what the program has changed for itself */
    struct handed handed;     /* [att] what Linux serves alone */
    char path[MSG_TEXT];      /* [fixed] of the server's socket */
};

/* Shared memory that the program made for itself: it may unmap and protect parts of the window
 * at will. */
static inline bool is_adopted(const struct attachment *att) { return att->way == ATTACH_ADOPTED; }

static inline bool has_shadow(const struct attachment *att) { return att->served == BY_SHADOW; }

/* Precondition: a lock that protects `length`. */
static inline uint64_t attachment_end(const struct attachment *att)
{
    return (uintptr_t)att->base + att->length;
}

/* From region offsets to addresses of the window, and back. Nobody else adds `base` to an offset:
 * the window need not begin where the region does. */
static inline uint8_t *attachment_at(const struct attachment *att, uint64_t offset)
{
    return att->base + (int64_t)(offset - att->offset);
}

static inline uint64_t attachment_offset(const struct attachment *att, uint64_t addr)
{
    return addr - (uintptr_t)att->base + att->offset;
}

/* Where the window ends in the region. Precondition: as attachment_end(). */
static inline uint64_t attachment_limit(const struct attachment *att)
{
    return att->offset + att->length;
}

/* Cuts the region offsets [*start, *end) to those of the window. False: it has none of them.
 * Precondition: as attachment_end(). */
static inline bool attachment_clip(const struct attachment *att, uint64_t *start, uint64_t *end)
{
    if (*start < att->offset)
        *start = att->offset;
    if (*end > attachment_limit(att))
        *end = attachment_limit(att);
    return *start < *end;
}

/* For the program and its threads; a shadow: tend.c. */
static inline void attachment_lock(struct attachment *att)
{
    lock_take(&att->lock, &att->shadow.alive);
}

static inline void attachment_unlock(struct attachment *att) { lock_release(&att->lock); }

#endif
