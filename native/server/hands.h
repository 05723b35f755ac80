/*
 * hands.h - calls that a client can hold up, made by other threads.
 *
 * Much of what the server does for a region takes a lock of Linux's that an attached process can
 * keep as long as it likes: the one of its address space, or those of the region's files. Such a
 * wait cannot be ended from here. So the thread that serves has these calls made by another one, a
 * hand, and waits for it for a moment, in which nearly all are done; then it goes on with other
 * things, and looks again later. A hand that is held up stays so, and there is another for the
 * next call.
 *
 * To wake a thread on another processor would take longer than most calls. So a hand runs on the
 * processor of the thread that serves, which lets it have that.
 *
 * Precondition of all functions: the thread that serves.
 */
#ifndef MSHARE_HANDS_H
#define MSHARE_HANDS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/entries.h"
#include "core/mm.h"
#include "core/protocol.h"
#include "core/uffd.h"

enum hand_op {
    HAND_FINISH,  /* hostmm_finish(), unless it is taken back before; see hands_take_back() */
    HAND_RECOVER, /* hostmm_recover() */
    HAND_SWEEP,   /* mm_sweep() */
    HAND_MEND,    /* mm_mend() */
    HAND_RELEASE, /* slot_release() */
    HAND_CHANGE,  /* touched_change() for each of `clients` */
    HAND_FAULT,   /* readers_fault() */
    HAND_ENTRIES, /* entries_catch_up() for nobody */
    HAND_SPAN,    /* entries_span(); 1: there is one, in `span` */
    HAND_PUNCH,   /* fallocate(2): gives memory of a file back */
    HAND_FETCH,   /* pidfd_getfd(2): descriptor `slot` of the process of pidfd `fd` */
    HAND_SAME,    /* kcmp(2): 0 if the processes `fd` and `slot` share their address space */
    HAND_WATCH,   /* perf_event_open(2): an event of thread `slot` that counts nothing */
    HAND_STAT,    /* /proc/PID/stat of thread `slot`: flags and start time, in `span` */
};

/* An attachment whose page tables are changed. */
struct hand_client {
    int32_t slot, uffd, pid;
};

/* A call; its memory, and what it points to, stay until it has ended. */
struct hand_call {
    enum hand_op op;
    struct mm *mm;
    int fd; /* mostly of the region's pages */
    unsigned slot;
    uint64_t claim;
    uint64_t start, end;
    uint64_t *span;
    enum uffd_change change;
    enum entries_how how;
    const struct hand_client *clients;
    unsigned count;
    _Atomic unsigned at;  /* the client that it is at */
    _Atomic bool dropped; /* nobody wants the rest of it */
    const struct fault_ask *ask;
    struct fault_told *told;

    int64_t result; /* of what it called, -errno for a system call; -ECANCELED: it was taken back */
    _Atomic bool ended; /* of hands.c, as what follows */
    _Atomic uint32_t finishing;
    struct hand *hand;
};

/* Begins a call, and waits for a moment, unless `moment` is false. Returns whether it has ended;
 * -EAGAIN: there are no more threads. */
int hands_begin(struct hand_call *call, bool moment);
/* Whether it has ended, and so `result` is there. */
bool hands_ended(const struct hand_call *call);
/* The processor's time that its hand has had in all, in nanoseconds: if that does not grow, the
 * call waits for somebody. Precondition: it has begun, and not ended. */
uint64_t hands_spent(const struct hand_call *call);
/* Of a HAND_FINISH that waits for a lock: whether it has changed nothing, and will not any more. */
bool hands_take_back(struct hand_call *call);

#endif
