/*
 * layout.h - a region's host mm in shared memory: the `.mm` object.
 *
 *   0            header                     struct mm_header
 *   slots_at     client slots               struct mm_slot[slots_max]
 *   vmas_at[2]   two VMA snapshot areas     struct mm_vma[MM_VMAS_AREA] each
 *   touched_at   a bitmap for each slot     touched_stride bytes each
 *   records_at   a ring of events           struct mm_record[TRACE_RECORDS]
 *   words_at     a word for each frame      uint64_t[frames_max]
 *   frames_at    table frames               4096 bytes each
 *
 * The file is sparse: parts that are never used take no memory. Everything in it
 * is untrusted input to a process that maps it, so every index, offset and count is
 * checked against the private copy of the geometry in struct mm (mm.h) before use.
 *
 * Who may write what, and when (S: the server; C: the client that owns the
 * slot; any: any attached process):
 *
 *   field                 who   when
 *   header, geometry      S     once, before the region can be attached
 *   owner_kind            S     also when the owner is gone
 *   epoch                 S     publishing a VMA snapshot (release)
 *   intent                S     before the publish it describes, and when done
 *   frames_hint           any   a hint only, any value is harmless
 *   frames_high           any   grows by compare-and-swap, never shrinks
 *   slots_high            any   grows by compare-and-swap, never shrinks
 *   claims                any   one fetch-and-add for each claim
 *   unwatched             any   set to 1 before the first such page can come
 *   retired, unmaps       S
 *   trace_until           S     while somebody reads the ring of events
 *   watch_until           S     while somebody asks which pages are used
 *   traced, records       any   one fetch-and-add for each record (trace.h)
 *   slot.state            any   FREE -> CLAIMED by compare-and-swap; otherwise C and S
 *   slot, the rest        C     while CLAIMED; S after the client's death
 *   slot's bitmap         C     bits are set before a page of the span becomes
 *                               reachable, inside an epoch; cleared with the slot
 *   VMA area epoch & 1    -     immutable while it is the current one
 *   VMA area of the other S     after a grace period, before the next publish
 *   frame word            any   FREE -> HELD by compare-and-swap, then the
 *                               holder; S once no VMA can reach the frame
 *   table entries         any   none -> present by compare-and-swap, inside an
 *                               epoch; S alone clears them, after a grace period
 *
 * No lock is shared: a process may die at any instruction.
 */
#ifndef MSHARE_LAYOUT_H
#define MSHARE_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ull
#define PMD_SIZE (1ull << 21)
#define PUD_SIZE (1ull << 30)
#define P4D_SIZE (1ull << 39)

/* The series puts every region at 512 GiB in its host mm (msharefs-v3 1.4). */
#define HOST_BASE P4D_SIZE
/* End of user addresses with 4-level paging, as on the kernel. */
#define HOST_END ((1ull << 47) - PAGE_SIZE)

#define MM_MAGIC 0x4d4d455241485348ull /* "HSHAREMM" read as little endian text */
#define MM_SLOTS 16384u                /* attachments of a region: the series' largest test */
#define MM_VMAS 65530u                 /* vm.max_map_count's default, the kernel's limit */
#define MM_VMAS_AREA (MM_VMAS + 2u)    /* while an UNMAP lasts, the VMA that it cuts is in parts */
#define MM_FRAMES_SPARE 4096u          /* table frames in hand at one instant */
#define MM_CGROUP_LEN 256u
/* The least budget of page tables: enough for one instruction in each of a few threads. */
#define BUDGET_MIN_BYTES (32 * PAGE_SIZE)
/* A 2 MiB span has as many pages as a PTE page has entries. */
#define SPAN_PAGES 512u
#define TRACE_RECORDS 16384u /* of the ring of events */

/* mm_header.intent.op */
enum mm_intent_op {
    INTENT_NONE = 0,
    INTENT_MAP = 1,   /* remove entries and pages of [start, end), clear VMA_BUSY */
    INTENT_UNMAP = 2, /* remove them, then the VMAs that are VMA_BUSY */
    /* Rights of [start, end) change to `prot`. Clients may still use the old ones:
     * a successor takes the change back, which needs nobody's help. */
    INTENT_PROTECT = 3,
    /* No client uses the old rights any more: set the entries, clear VMA_BUSY. */
    INTENT_RIGHTS = 4,
    /* Entries of [start, end) are to go, the pages stay. Clients may still have them mapped: a
     * successor takes the change back, too. */
    INTENT_DROP = 5,
    INTENT_DROPPED = 6, /* no client has them: remove the entries, clear VMA_BUSY */
};

/* Whose end is the region's end. */
enum mm_owner_kind {
    OWNER_FILE = 0,    /* its last name, descriptor and attachment */
    OWNER_PROCESS = 1, /* as OWNER_FILE, or the process that made it */
    OWNER_THREAD = 2,  /* as OWNER_FILE, or the thread: owner_pid is a thread's number */
    OWNER_GONE = 3,    /* the region has ended: it is empty, and cannot be attached again */
    OWNER_CREATOR = 4, /* as OWNER_PROCESS, or the last descriptor that the process has of it */
};

/* The change that the server is about to publish, so that a successor can finish it.
 * It counts only if `epoch` is the header's epoch: the publish is the commit. */
struct mm_intent {
    uint64_t op;
    uint64_t start, end; /* region offsets, bytes */
    uint64_t epoch;
    uint64_t prot; /* enum vma_flags */
};

struct mm_counters {
    _Atomic uint64_t faults;       /* leaf entries filled by a first touch */
    _Atomic uint64_t links;        /* quanta linked */
    _Atomic uint64_t materialised; /* pages made reachable in a client's real MMU */
    _Atomic uint64_t segv;         /* accesses refused */
    _Atomic uint64_t prefaulted;   /* leaf entries filled ahead of a sequential first touch */
    _Atomic uint64_t evicted;      /* 2 MiB spans given back to stay within a budget */
    _Atomic uint64_t refaulted;    /* those of them that came back */
};

struct mm_header {
    uint64_t magic;
    uint64_t signature; /* layout_signature() of the writer's build */
    uint64_t region;    /* number of the region in its mount */
    uint64_t size;      /* region, bytes */
    uint64_t quantum;   /* bytes */
    uint64_t file_size; /* of this object, bytes */
    uint64_t slots_at, vmas_at[2], touched_at, records_at, words_at, frames_at;
    uint64_t touched_stride;
    uint32_t slots_max, vmas_max;
    uint64_t frames_max;

    int32_t owner_pid;         /* in the server's pid namespace; 0: none */
    uint32_t owner_kind;       /* enum mm_owner_kind */
    uint64_t owner_start_time; /* clock ticks since boot */
    char owner_cgroup[MM_CGROUP_LEN];

    _Alignas(64) _Atomic uint64_t epoch; /* snapshot number; its area is epoch & 1 */
    uint64_t vmas_used[2];
    struct mm_intent intent;

    _Alignas(64) _Atomic uint64_t frames_hint; /* where to look for a free frame */
    _Atomic uint64_t frames_high;              /* frames ever used are below this */
    _Atomic uint64_t slots_high;               /* slots ever used are below this */
    _Atomic uint64_t claims;                   /* slots ever claimed */
    _Atomic uint64_t traced;                   /* events ever recorded */

    _Alignas(64) struct mm_counters retired; /* of clients that are gone */
    uint64_t unmaps;
    uint64_t serial; /* of the last mapping made */
    uint64_t
        fault_around; /* pages a sequential first touch may fill together; 1: strict; 0: around.c */
    uint64_t budget;  /* bytes of its own page tables that a client may keep; 0: any number */
    /* 1: first touches of memory that all may read and write are Linux's, until entries are
     * dropped */
    _Atomic uint32_t linux_fills;
    _Atomic uint32_t unwatched; /* 1: there may be pages without entries, since that has been so */
    _Atomic uint64_t trace_until; /* events are recorded until then: CLOCK_MONOTONIC, ns; 0: not */
    _Atomic uint64_t watch_until; /* until then first touches are not Linux's; the same clock */
};

enum vma_flags {
    VMA_READ = 1, /* = PROT_READ, PROT_WRITE, PROT_EXEC */
    VMA_WRITE = 2,
    VMA_EXEC = 4,
    VMA_PROT = 7,
    VMA_BUSY = 8,  /* being replaced: a fault waits for the next snapshot */
    VMA_HUGE = 16, /* its object has 2 MiB pages: leaf entries are PMD entries */

    /* What has been asked for by verbs on the region (server/hostmm.h). A fault looks at none of
     * them but VMA_GUARD. */
    VMA_SEALED = 32,  /* its mapping, its rights and its contents are not taken away any more */
    VMA_LOCKED = 64,  /* the server has it locked in memory */
    VMA_GUARD = 128,  /* an access that the rights permit is SIGSEGV, SEGV_MAPERR */
    VMA_RANDOM = 256, /* advice, as VM_RAND_READ, VM_SEQ_READ, VM_HUGEPAGE, VM_NOHUGEPAGE */
    VMA_SEQUENTIAL = 512,
    VMA_HUGEPAGE = 1024,
    VMA_NOHUGEPAGE = 2048,
    VMA_POLICY = 0xff0000, /* a number: VMAs with the same memory policy have the same; 0: none */
};

#define VMA_POLICY_SHIFT 16

/* One mapping: [start, end) in region offsets, bytes. */
struct mm_vma {
    uint64_t start, end;
    uint64_t offset; /* of `start` in the object, bytes */
    uint32_t flags;  /* enum vma_flags */
    uint32_t object; /* 0: anonymous; otherwise the server's number of a file */
    uint64_t serial; /* of the CREATE_MAPPING that made it: VMAs merge only if it is equal */
};

/*
 * slot.state: SLOT_FREE, or the process that claimed the slot. It is one word because
 * a pid without its namespace may be another process's:
 *
 *   63                 32 31    0
 *   | pid namespace      | pid  |     the namespace's inode number
 *
 * Once the server knows the client, it puts the pid in its own namespace here, and 0.
 */
#define SLOT_FREE 0u

static inline uint64_t slot_process(uint32_t pid, uint32_t pid_namespace)
{
    return (uint64_t)pid_namespace << 32 | pid;
}

/* How a client came to be attached. */
enum attach_way {
    ATTACH_LIBRARY = 0, /* mshare_attach() */
    ATTACH_PRELOAD = 1, /* mmap(2) of the region file by an unmodified program */
    ATTACH_ADOPTED = 2, /* the program's own shared memory, which became a region */
};

/* A client's attachment. One writer: the client. Three cache lines, the last of which faults leave
 * alone. */
struct mm_slot {
    _Alignas(64) _Atomic uint64_t state; /* its process, or SLOT_FREE */
    uint64_t start_time;                 /* of the process, clock ticks since boot */
    uint64_t base;                       /* of the window, client address */
    uint32_t part, part_spans; /* what of the region it is: the number of its first 2 MiB span, and
                                * how many they are */
    _Atomic uint64_t touched;  /* pages of the bitmap in use (touched.h) */
    /* Number of the claim: a message about a slot that has changed hands since must
     * not be taken for a message about its new holder. 0: not claimed. */
    _Atomic uint64_t claim;
    /* Page tables of one page each that the client may keep; 0: any number. */
    _Atomic uint32_t budget, budget_asked; /* now; at first, which is less or equal */
    _Atomic uint32_t budget_grown;         /* how often it had to grow */
    uint8_t prot;                          /* of the window */
    uint8_t way;                           /* enum attach_way */
    _Atomic uint8_t poisoned;              /* guard pages: made to fault natively (poison.c) */
    /* 1: pages of its window are not watched, and before anything can be taken away there,
     * they have to be registered with its userfaultfd again (handover.c). */
    _Atomic uint8_t handed;
    _Alignas(64) _Atomic uint64_t epoch; /* not 0: inside a fault since that epoch */
    struct mm_counters counters;
    /* Page tables, of one page each, that it has for itself: its own changes of its window
     * (client/private.c). */
    _Alignas(64) _Atomic uint32_t unshared;
};

/* An event (trace.h). `check` is a sum over the rest: a record that is half written does not agree
 * with it. */
struct mm_record {
    _Atomic uint64_t number; /* counted from 1 */
    _Atomic uint64_t time_ns, offset, bytes;
    _Atomic uint64_t who; /* pid << 32 | enum trace_kind */
    _Atomic uint64_t check;
};

/*
 * Frame words: what struct page is in the kernel. A frame is FREE, or HELD by the
 * slot that is about to link it into a table, or a TABLE of a level and a span.
 * Level and span say where its parent entry is, so after a crash one look tells
 * whether the frame was linked.
 *
 *   63       32 31  20 19   4 3   2 1     0
 *   | span     |  0   | slot | lvl | state |     span: region offset >> 21
 */
enum frame_state { FRAME_FREE = 0, FRAME_HELD = 1, FRAME_TABLE = 2 };

static inline uint64_t frame_word(enum frame_state state, unsigned level, unsigned slot,
                                  uint64_t addr)
{
    return (addr >> 21) << 32 | (uint64_t)slot << 4 | level << 2 | state;
}

static inline enum frame_state frame_state(uint64_t word) { return word & 3; }
static inline unsigned frame_level(uint64_t word) { return word >> 2 & 3; }
static inline unsigned frame_slot(uint64_t word) { return word >> 4 & 0xffff; }
static inline uint64_t frame_addr(uint64_t word) { return word >> 32 << 21; }

/* Paging entries, bit for bit x86-64 (Intel SDM 3A 4.5). */
#define ENTRY_PRESENT (1ull << 0)
#define ENTRY_RW (1ull << 1)
#define ENTRY_USER (1ull << 2)
#define ENTRY_ACCESSED (1ull << 5)
#define ENTRY_DIRTY (1ull << 6)
#define ENTRY_HUGE (1ull << 7)     /* PS, in a PMD entry: a 2 MiB leaf */
#define ENTRY_PROTNONE (1ull << 8) /* a page without access: not PRESENT, as in Linux */
#define ENTRY_NX (1ull << 63)
#define ENTRY_ADDR 0x000ffffffffff000ull
#define ENTRY_TABLE (ENTRY_PRESENT | ENTRY_RW | ENTRY_USER | ENTRY_ACCESSED)

/* The fixed map of "physical" addresses in entries. A real MMU can walk it. */
#define TABLES_BASE (1ull << 40) /* + 4096 * frame */
#define DATA_BASE (1ull << 47)   /* + region offset: anonymous pages */
/* + region offset: pages of objects. The accessed and dirty bits are those of the access
 * that mapped the page: the kernel serves later ones without us. An object's file may
 * shrink, and entries past its end stay; the SIGBUS there comes from the kernel. */
#define OBJECTS_BASE (1ull << 48)

static_assert(sizeof(struct mm_vma) == 40, "VMA layout");
static_assert(sizeof(struct mm_slot) == 192, "slot layout");
static_assert(sizeof(struct mm_header) <= 4096, "the header is one page");
static_assert(MM_SLOTS <= 1u << 16, "slot number fits a frame word");
static_assert(HOST_END >> 21 <= UINT32_MAX, "span fits a frame word");
static_assert(DATA_BASE + HOST_END <= OBJECTS_BASE, "the maps are disjoint");
static_assert(OBJECTS_BASE + HOST_END <= ENTRY_ADDR + PAGE_SIZE, "they fit an entry");

/* Two programs that were built differently must not share a region: FNV-1a over
 * everything the layout depends on. */
static inline uint64_t layout_signature(void)
{
    /* clang-format off */
    const uint64_t facts[] = {
        sizeof(struct mm_header), sizeof(struct mm_slot), sizeof(struct mm_vma),
        offsetof(struct mm_header, epoch), offsetof(struct mm_header, frames_hint),
        offsetof(struct mm_header, retired), offsetof(struct mm_slot, epoch),
        offsetof(struct mm_slot, counters), offsetof(struct mm_slot, touched),
        offsetof(struct mm_slot, claim), offsetof(struct mm_slot, budget),
        offsetof(struct mm_slot, handed), offsetof(struct mm_slot, part),
        offsetof(struct mm_slot, unshared),
        offsetof(struct mm_header, claims), offsetof(struct mm_header, unwatched),
        offsetof(struct mm_header, traced), offsetof(struct mm_header, trace_until),
        offsetof(struct mm_header, watch_until),
        sizeof(struct mm_record), TRACE_RECORDS, MM_SLOTS, MM_VMAS,
        TABLES_BASE, DATA_BASE, OBJECTS_BASE, HOST_BASE, VMA_BUSY, VMA_HUGE, FRAME_TABLE,
        INTENT_DROPPED, VMA_GUARD, VMA_POLICY,
    };
    /* clang-format on */
    uint64_t hash = 0xcbf29ce484222325ull;

    for (unsigned i = 0; i < sizeof facts / sizeof *facts; i++)
        hash = (hash ^ facts[i]) * 0x100000001b3ull;
    return hash;
}

#endif
