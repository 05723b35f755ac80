/*
 * shadow.h - the process that takes an attachment's faults: it shares the program's address
 * space, and nothing else.
 *
 *   program     Threads: 1, no descriptor of ours, no child that wait(2) could see
 *   shadow      clone(2) with CLONE_VM: descriptors, signals, session and limits of its own;
 *               a stranger's child, without any right (confine.h)
 *
 * So nothing that a program does to itself reaches the one who answers its faults: it may
 * end its first thread, close all descriptors, forbid itself system calls, stop. A shadow
 * ends when the program ends or is replaced by exec(2), or when the attachment ends.
 *
 * A shadow uses the C library's functions, but only those that are one system call, or none:
 * its thread-local storage is zero, enough for errno, and knows of no thread. No malloc, no
 * stdio, no lock of the C library, nothing that is looked up when it is first called.
 */
#ifndef MSHARE_SHADOW_H
#define MSHARE_SHADOW_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SHADOW_COOKIE 16

/* What the program wants of a shadow that runs (request.h). */
enum request_op {
    REQUEST_NONE,
    REQUEST_END,     /* say goodbye to the server, and end */
    REQUEST_WATCH,   /* handover_end() */
    REQUEST_BUDGET,  /* budget_apply(), with bytes */
    REQUEST_ENTRIES, /* present_catch_up(), with region offsets */
};

struct request {
    _Atomic int op; /* enum request_op; REQUEST_NONE: it is done */
    uint64_t arg, end;
    int result;
};

/* `state` until it is an errno, negative. */
enum shadow_state { SHADOW_NONE, SHADOW_BORN, SHADOW_READY };

struct attachment;

/* So many children can be waited for by name at one time. */
#define BORN_MAX 8u

/* How many children of a process will want something of its shadow, and how many have got it or no
 * longer want it. */
struct births {
    _Atomic unsigned forks, served;
    _Atomic uint64_t last_ms;       /* when the last one was forked */
    _Atomic uint32_t now[BORN_MAX]; /* thread ids of those that are about to ask; 0: nobody */
};

#define FAMILY_MAX 64u

/* Shared by the shadows of an attachment and of the same one in children of fork(2). After so many
 * processes they share entries, too. */
struct family {
    _Atomic unsigned next;
    struct births births[FAMILY_MAX];
};

/* What the mother of a child's shadow looks for in its parent's (inherit_fetch()). */
struct parent {
    int pid;
    int mm_fd, mem_fd, dev_fd, ctl;
    struct births *births;
    _Atomic uint32_t *name; /* the child's own, among them; NULL: none */
};

struct shadow {
    int program;       /* process id of the program, in its own pid namespace */
    int pid;           /* its own, in that namespace, too */
    _Atomic int alive; /* as pid; the kernel clears it, with a wake-up, when the shadow has ended */
    _Atomic int state; /* enum shadow_state, or -errno: it ends */
    bool own_child;    /* the program's, which would adopt it otherwise */
    bool inherits;     /* made by a child of fork(2): it has no descriptor to begin with */
    bool idle;         /* nothing but the watch of the window is its own yet (life.h) */
    void (*life)(struct attachment *);
    uint8_t *place;     /* its stacks and its thread-local storage */
    uint8_t *bell;      /* a page whose touch is a fault for the shadow: see request.h */
    const void *server; /* the address of the server's socket (confine.h); NULL: none */
    struct request request;
    /* Descriptors, in the shadow's table. */
    int bell_fd, end_fd, maps_fd, size_fd, post_fd, kit_fd, parent_ctl;
    /* The address of post_fd, to which shadows of children write (inherit.h); without the
     * beginning zero of an abstract address. */
    char post[8];
    uint8_t cookie[SHADOW_COOKIE]; /* that they show */
    struct family *family;
    struct births *births; /* of the program's children */
    struct parent parent;
    /* Its own state, between events. */
    void *escape[5]; /* where to go on after a SIGBUS */
    bool tends;      /* it has such a place */
    bool broken;     /* .mm or .mem is not what it was: every access is refused */
    bool burst;      /* events come soon after each other */
    unsigned batches;
    uint64_t lingered_ns;
    uint64_t look_ms, rest_ms; /* when to look for an exec(2), and how long until the next look */
};

#endif
