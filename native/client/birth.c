/*
 * birth.c - a shadow is made by two clone(2); see birth.h.
 *
 *   program   --clone-->   mother   --clone-->   shadow
 *             (waits as    (ends at              (goes on as a child of whoever adopts
 *             in vfork)    once)                 orphans)
 *
 * A child of its own is something that a program may see: by waitid(2) with __WALL, and by a
 * SIGCHLD once it has been replaced by exec(2), when the child ends. An orphan has no such
 * tie. clone3(2) would have nothing more for us, and older container profiles refuse it.
 *
 *   place    | guard | mother, mover | the shadow's stack | thread-local storage | bell |
 */
#define _GNU_SOURCE
#include "client/birth.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/linger.h"

#define PLACE_BYTES (256ull << 10)
#define SECOND_STACK_END (32ull << 10)
#define STACK_END (176ull << 10)
/* The C library's variables lie before the thread pointer, its own record of the thread behind. */
#define THREAD_POINTER (240ull << 10)
#define BELL (PLACE_BYTES - PAGE_SIZE)
/* How often to look whether a shadow that we wait for still lives. */
#define LOOK_NS 20000000
/* A shadow that is not ready by then never will be. The program holds the table's lock meanwhile,
 * and no signal comes through. */
#define BORN_NS 10000000000u
/* A birth takes some tenths of a millisecond: so often we stay awake for a while (linger.h). */
#define AWAKE 8

/* The beginning of the thread control block, which compilers and the C library agree on. */
struct control_block {
    void *self;
    uint64_t vector;
    void *thread;
    uint64_t other[2];
    uint64_t canary, pointer_guard; /* of the process: fs:0x28 and fs:0x30 */
};

struct newborn {
    struct attachment *att;
    void (*life)(struct attachment *);
};

uint8_t *birth_second_stack(const struct attachment *att)
{
    return att->shadow.place + SECOND_STACK_END;
}

static int make_place(struct shadow *shadow)
{
    /* After mlockall(MCL_FUTURE) a mapping is filled when it is made. */
    uint8_t *place = mmap(NULL, PLACE_BYTES, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

    if (place == MAP_FAILED)
        return -errno;
    munlock(place, PLACE_BYTES);
    if (mprotect(place + PAGE_SIZE, PLACE_BYTES - PAGE_SIZE, PROT_READ | PROT_WRITE)) {
        const int err = -errno;

        munmap(place, PLACE_BYTES);
        return err;
    }
    madvise(place, PLACE_BYTES, MADV_DONTDUMP);
    shadow->place = place;
    shadow->bell = place + BELL;
    return 0;
}

static void *thread_pointer(const struct shadow *shadow)
{
    struct control_block *block = (struct control_block *)(shadow->place + THREAD_POINTER);

    *block = (struct control_block){.self = block, .thread = block};
    __asm__("movq %%fs:0x28, %0" : "=r"(block->canary));
    __asm__("movq %%fs:0x30, %0" : "=r"(block->pointer_guard));
    return block;
}

static int live(void *arg)
{
    const struct newborn newborn = *(const struct newborn *)arg;

    newborn.life(newborn.att);
    syscall(SYS_exit_group, 0);
    return 0;
}

/* It has the thread-local storage of the program's thread, which waits. */
static int mother(void *arg)
{
    const struct newborn *newborn = arg;
    struct shadow *shadow = &newborn->att->shadow;
    const int flags = CLONE_VM | CLONE_FILES | CLONE_UNTRACED | CLONE_SETTLS | CLONE_CHILD_CLEARTID;

    atomic_store(&shadow->alive, 1);
    shadow->pid = clone(live, shadow->place + STACK_END, flags, arg, NULL, thread_pointer(shadow),
                        &shadow->alive);
    if (shadow->pid < 0) {
        atomic_store(&shadow->state, -errno);
        atomic_store(&shadow->alive, 0);
    }
    return 0;
}

static long futex(const _Atomic int *word, int op, int value, const struct timespec *limit)
{
    return syscall(SYS_futex, word, op, value, limit, NULL, 0);
}

void birth_done(struct attachment *att, int state)
{
    atomic_store(&att->shadow.state, state);
    futex(&att->shadow.state, FUTEX_WAKE_PRIVATE, 1, NULL);
}

/* The kernel wakes those who wait for its end, but not for this process alone. */
static void wait_for_end(const struct shadow *shadow)
{
    const struct timespec limit = {.tv_nsec = LOOK_NS};

    while (atomic_load(&shadow->alive))
        futex(&shadow->alive, FUTEX_WAIT, 1, &limit);
}

/* Whether it has come to something. */
static int is_born(void *arg)
{
    const struct shadow *shadow = arg;

    return atomic_load(&shadow->state) != SHADOW_BORN || !atomic_load(&shadow->alive);
}

int birth(struct attachment *att, void (*life)(struct attachment *))
{
    struct newborn newborn = {att, life};
    struct shadow *shadow = &att->shadow;
    const struct timespec limit = {.tv_nsec = LOOK_NS};
    const int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_FS | CLONE_UNTRACED;
    int err = shadow->place ? 0 : make_place(shadow), pid;

    if (err)
        return err;
    shadow->program = getpid();
    atomic_store(&shadow->state, SHADOW_BORN);
    pid = clone(mother, birth_second_stack(att), flags, &newborn);
    if (pid < 0)
        return -errno;
    while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
        ;
    for (unsigned i = 0; i < AWAKE && !linger(is_born, shadow); i++)
        ;
    const uint64_t start = clock_ns(CLOCK_MONOTONIC);
    while (!is_born(shadow)) {
        futex(&shadow->state, FUTEX_WAIT_PRIVATE, SHADOW_BORN, &limit);
        if (clock_ns(CLOCK_MONOTONIC) - start > BORN_NS)
            syscall(SYS_kill, shadow->pid, SIGKILL);
    }
    err = atomic_load(&shadow->state);
    if (err == SHADOW_READY)
        return 0;
    wait_for_end(shadow);
    return err < 0 ? err : -ECHILD; /* it was killed */
}

void birth_undo(struct attachment *att)
{
    wait_for_end(&att->shadow);
    if (att->shadow.place)
        munmap(att->shadow.place, PLACE_BYTES);
    att->shadow.place = NULL;
}
