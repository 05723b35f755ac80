/*
 * attachment.h - one attached region of this process. Internal to the client
 * library: attach.c makes and ends them, attachments.c finds them, fork.c takes
 * them into a child, service.c waits for their events, resolve.c answers the
 * faults, objects.c maps the files behind them, arrange.c puts the window back,
 * budget.c limits what the answers cost.
 *
 * Locks, all private to the process, outermost first:
 *   attachments_lock   the table; attach, detach, fork and every change of the
 *                      address space that concerns a window hold it
 *   att->lock          the attachment while an event of it is handled
 * The service thread never takes the first, so fork() may hold it while other
 * threads fault. Several att->lock are taken in the order of the table.
 */
#ifndef MSHARE_ATTACHMENT_H
#define MSHARE_ATTACHMENT_H

#include <pthread.h>

#include "client/budget.h"
#include "client/handover.h"
#include "client/pieces.h"
#include "core/fault.h"
#include "core/mm.h"
#include "core/protocol.h"
#include "core/uffd.h"

/* About 250 windows of 512 GiB fit an address space. */
#define ATTACHMENTS_MAX 256
/* Pages that fault natively at one time; each may split a mapping in two. */
#define POISONS_MAX 32

/* How a page was made to fault natively, and so how that is undone. */
enum poison_kind { POISON_GUARD, POISON_PROT, POISON_BUS };

struct poison {
    uint64_t offset;
    enum poison_kind kind;
};

/* Descriptors of objects that are kept; more are asked for again when needed. */
#define OBJECTS_MAX 64

enum object_state {
    OBJECT_NONE,
    OBJECT_ASKED,  /* threads wait for it */
    OBJECT_HELD,   /* `fd` is it */
    OBJECT_FAILED, /* the server has none of that number */
};

struct object {
    enum object_state state;
    uint32_t number; /* the server's */
    bool writing;    /* asked for by a fault that may write: it may be for reading else */
    int fd;
    /* What `fd` was when it came. A fork() may have come between its coming and
     * this note, and programs close what is not theirs. */
    uint64_t device, inode;
};

/* What madvise(2) has set on a window, as it would on the kernel's VMA. */
enum advice {
    ADVICE_RANDOM = 1,
    ADVICE_SEQUENTIAL = 2,
    ADVICE_DONTFORK = 4,
    ADVICE_DONTDUMP = 8,
    ADVICE_HUGEPAGE = 16,
    ADVICE_NOHUGEPAGE = 32,
};

/* around.c: how far a fault should look beyond its page. */

#define AHEAD_PAGES 8192u /* of a sequential run: 32 MiB, some milliseconds */
#define AROUND_SPANS 512 /* what is in use of a region of 1 GiB */

struct around {
    uint64_t next;  /* region offset that would be sequential */
    uint64_t pages; /* length of the next sequential run */
    /* Random access: recent 2 MiB spans, by number modulo AROUND_SPANS. */
    struct recent {
        uint32_t span;   /* region offset / PMD_SIZE */
        uint32_t faults; /* 0: nothing is known of it */
        uint32_t looked; /* FAULT_BLOCKs of it that a fault has looked at, a bit each */
    } recent[AROUND_SPANS];
};

/* The span at region offset `span` was taken away: nothing of it is mapped. */
void around_forget(struct around *around, uint64_t span);
/* Sets fault->start, end and fill from the faults before. `present`: the page is
 * there already; `touched`: a page of its span has been mapped before; `fault_around`:
 * the region's limit for pages nobody touched.
 * Then tell around->next where the run ended. */
void around_choose(struct around *around, struct fault *fault, bool present, bool touched,
                   uint64_t fault_around);

struct attachment {
    pthread_mutex_t lock;
    bool live;
    struct mm mm;
    int mem_fd;  /* the pages */
    int dev_fd;  /* /dev/userfaultfd, for children */
    int uffd;
    int moved_uffd; /* of what arrange.c has moved into the window; -1: nothing */
    int ctl;     /* control connection; -1: the server is away */
    uint8_t *base;
    uint64_t length; /* of the window, bytes: the region's size, less if adopted */
    enum attach_way way;
    int asked; /* PROT_* of the attachment */
    int prot;  /* PROT_* of the window: the same, or all with -o quirks=v3 */
    unsigned slot;
    uint64_t claim;      /* of the slot, as it was given */
    uint64_t *linked;    /* a bit a quantum */
    struct around around; /* what to map beside a page that faults */
    struct poison poisons[POISONS_MAX]; /* a ring */
    unsigned poisons_at, poisons_used;
    struct budget budget;
    struct object objects[OBJECTS_MAX];
    unsigned objects_at; /* the next to go when there are more */
    struct memory_policy {
        int mode; /* MPOL_* */
        unsigned long nodes;
    } policy;        /* what mbind(2) was told of the whole; for the preload library */
    bool sealed;     /* mseal(2); for the preload library */
    unsigned advice; /* enum advice: what madvise(2) was told (preload library) */
    struct pieces pieces; /* of adopted memory: what is left of the window */
    struct handed handed; /* what Linux serves alone */
    char path[MSG_TEXT]; /* of the server's socket */
};

extern struct attachment attachments[ATTACHMENTS_MAX];
/* Those from here on never held anything and are not looked at: each would cost a
 * page fault, in every child too. Only grows, under the lock. */
extern _Atomic unsigned attachments_used;

/* The arguments of mmap(2). */
struct attach_request {
    void *addr;
    /* Bytes; rounded up to a page it must be the region's size. 0: whatever that is. */
    uint64_t length;
    uint64_t offset; /* into the file: without effect, but checked as by the kernel */
    int prot, flags;
    enum attach_way way; /* adopted: `length` may be less than the region's size */
};

/* attachments.c */

/* The table's lock. No signal handler runs and no cancellation acts meanwhile in
 * the thread that holds it; it may take it again. errno is as before when it is free. */
void attachments_lock(void);
void attachments_unlock(void);
/* In a forked child, whose only thread holds the lock. */
void attachments_relock(void);
/* Whether the attachments are this process's: a child of vfork(2) runs in its parent's
 * memory, but the descriptors it changes are its own. */
bool attachments_own(void);
/* The attachment with the lowest window that overlaps [start, end), or NULL. */
struct attachment *attachment_over(uint64_t start, uint64_t end);
/* The attachment whose host mm is mapped at `addr`. NULL: none. */
struct attachment *attachment_of_tables(uint64_t addr);
struct attachment *attachment_unused(void);
/* Whether [start, end) comes near any window: without a lock, to rule it out. */
bool attachments_near(uint64_t start, uint64_t end);
/* The window of `att` is about to be: from now on it is near. */
void attachments_cover(const struct attachment *att);
/*
 * Changes the mappings of [start, end) by `change`, which returns 0 or -errno,
 * and ends the attachments whose windows that takes away. -EINVAL: it would take
 * a part of one, -EPERM: a sealed one; nothing is changed. Needs the table's lock.
 */
int attachments_replace(uint64_t start, uint64_t end, int (*change)(void *), void *arg);

/* Shared memory that the program made itself: it may unmap and protect parts of the window as
 * it likes. */
static inline bool is_adopted(const struct attachment *att) { return att->way == ATTACH_ADOPTED; }

static inline uint64_t attachment_end(const struct attachment *att)
{
    return (uintptr_t)att->base + att->length;
}

/* attach.c */

/* The begin of a small file; empty if it cannot be read. No stdio: also for the child
 * of a fork, and inside another's program. */
void attach_read_text(const char *path, char *text, size_t size);
/* As mshare_attach(), returns 0 or -errno. -ENOTTY: `fd` is not a region. */
int attach_request(int fd, const struct attach_request *request, void **base);
/* Ends an attachment whose window is no longer there. Call with both locks held. */
void attach_end(struct attachment *att);
/* Lets go of all that `att` holds, but its window. */
void attach_drop(struct attachment *att, bool claimed);
/* Field 22 of /proc/self/stat, in clock ticks: tells a process from a later one with
 * the same number. */
uint64_t attach_start_time(void);
/* A slot of our own in the region. `start_time`: 0, if the server is about to put it there. */
int attach_claim(struct attachment *att, uint64_t start_time);
/* In a forked child: it is another process. */
void attach_forked(void);
/* Maps the window over whatever reserved it; PROT_NONE, until it is watched. */
int attach_map(const struct attachment *att);
/* A new userfaultfd, with UFFD_FEATURE_* `more` beside what we need. Or -errno. */
int attach_uffd(const struct attachment *att, uint64_t more);
/* A userfaultfd of our own, over the window. */
int attach_watch(struct attachment *att);

/* check.c */

/* What mmap(2) checks after it has found a place, in its order. `mode` is that of
 * the descriptor (O_ACCMODE), `length` the window's. Returns 0 or -errno. */
int check_attach(int fd, int mode, const struct attach_request *request, uint64_t length);

/* fork.c */

/* Has fork() call us; once a process. */
void fork_prepare(void);

/* service.c */

/* Starts the thread if need be. Call with the table's lock held. */
int service_start(void);
/* Forgets the thread: it did not survive fork(). */
void service_forget(void);
int service_watch(struct attachment *att);
/* From now on also att->moved_uffd; on the service thread. */
int service_watch_moved(struct attachment *att);
void service_unwatch(struct attachment *att);
/* CPU time, ns, that the thread has spent on looking for events; on the thread. */
uint64_t service_lingered(void);
/* Gives up the number `fd`, one of ours: the program wants it. Call with the table's
 * lock held. Returns 0 or -errno. */
int service_move_fd(int fd);

/* resolve.c: call with att->lock held. */

/* Answers a fault at `addr`; `flags` are UFFD_PAGEFAULT_FLAG_*. */
void resolve_fault(struct attachment *att, uint64_t addr, uint64_t flags);
/* Takes the pages of region offsets [start, end) out of the real page tables; with
 * `objects` (REVOKE_OBJECTS) there may be pages of objects among them. */
int resolve_revoke(struct attachment *att, uint64_t start, uint64_t end, bool objects);
/* Counts the pages of region offsets [start, end) as reachable; `fresh` of them were not. */
void resolve_reached(struct attachment *att, uint64_t start, uint64_t end, uint64_t fresh);
/* Wakes all who wait for a page of region offsets [start, end): they fault again. */
void resolve_wake(const struct attachment *att, uint64_t start, uint64_t end);

/* poison.c: call with att->lock held. */

/* Makes the page of a refused fault fault natively. Call inside the fault's epoch:
 * a server that maps something there afterwards waits for us and then sees it. */
void poison_page(struct attachment *att, const struct fault *fault, enum fault_verdict verdict);
/* Lets pages of region offsets [start, end) reach us again. */
void poison_rearm(struct attachment *att, uint64_t start, uint64_t end);
/* Something else is mapped at region offsets [start, end): nothing is to be undone. */
void poison_forget(struct attachment *att, uint64_t start, uint64_t end);

/* objects.c: call with att->lock held. */

/* Makes ready to map the object that is behind a permitted fault: fault->start, end
 * and limit. -EINPROGRESS: it was asked for; resolve_wake() follows when it comes.
 * -EAGAIN: try again. -ENOENT: there is none. */
int object_find(struct attachment *att, struct fault *fault);
/* Maps it. Call inside the epoch of object_find(). Returns how many pages that
 * made reachable, or -errno. */
int64_t object_map(struct attachment *att, const struct fault *fault);
/* The server's answer; `fd` is ours now, -1: none. */
void object_answer(struct attachment *att, uint32_t number, int fd);
/* What was asked for will not be answered: the connection is gone. */
void objects_unask(struct attachment *att);
/* Lets go of all descriptors. */
void objects_drop(struct attachment *att);
/* Where the descriptor `fd` of an object is kept, or NULL. */
int *object_descriptor(struct attachment *att, int fd);

/* arrange.c: call with att->lock held. */

/* What the protection of the window is at `offset`, where no object is mapped: the
 * attachment's, and execution where the mapping there permits it. Call inside an epoch. */
int arranged_prot(const struct attachment *att, uint64_t offset);
/* Makes it so at region offsets [start, end). What is mapped of objects there goes, and
 * comes back by faults; with `objects` also where the region has something else by now. */
int arrange(struct attachment *att, uint64_t start, uint64_t end, bool objects);

#endif
