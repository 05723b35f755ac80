/*
 * attachment.h - one attached region of this process. Internal to the client
 * library: attach.c makes and ends them, service.c waits for their events,
 * resolve.c answers the faults.
 *
 * Locks, all private to the process, outermost first:
 *   attach_lock   the table of attachments; attach, detach and fork hold it
 *   att->lock     the attachment while an event of it is handled
 * The service thread never takes attach_lock, so fork() may hold it while other
 * threads fault.
 */
#ifndef MSHARE_ATTACHMENT_H
#define MSHARE_ATTACHMENT_H

#include <pthread.h>

#include "mm.h"
#include "protocol.h"

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

struct attachment {
    pthread_mutex_t lock;
    bool live;
    struct mm mm;
    int mem_fd;  /* the pages */
    int dev_fd;  /* /dev/userfaultfd, for children */
    int uffd;
    int ctl;     /* control connection; -1: the server is away */
    uint8_t *base;
    int prot;
    unsigned slot;
    uint64_t *linked;    /* a bit a quantum */
    uint64_t next;       /* region offset that would be sequential */
    uint64_t window;     /* pages to map together then */
    struct poison poisons[POISONS_MAX]; /* a ring */
    unsigned poisons_at, poisons_used;
    char path[MSG_TEXT]; /* of the server's socket */
};

extern struct attachment attachments[ATTACHMENTS_MAX];

/* service.c */

/* Starts the thread if need be. Call with attach_lock held. */
int service_start(void);
/* Forgets the thread: it did not survive fork(). */
void service_forget(void);
int service_watch(struct attachment *att);
void service_unwatch(struct attachment *att);

/* resolve.c: call with att->lock held. */

/* Answers a fault at `addr`; `flags` are UFFD_PAGEFAULT_FLAG_*. */
void resolve_fault(struct attachment *att, uint64_t addr, uint64_t flags);
/* Lets pages of region offsets [start, end) reach us again. */
void resolve_rearm(struct attachment *att, uint64_t start, uint64_t end);

/* attach.c */

/* Registers [base, base+size) with att->uffd for every event we answer. */
int attach_register(const struct attachment *att, uint8_t *start, uint64_t size);

#endif
