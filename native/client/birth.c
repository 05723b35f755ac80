/*
 * birth.c - a shadow is made by two clone(2); see birth.h.
 *
 *   program   --clone-->   mother   --clone-->   shadow
 *             (waits as    (prepares             (goes on as a child of whoever adopts
 *             in vfork)    all, ends)            orphans)
 *
 * A child of its own is something that a program may see: by waitid(2) with __WALL, and by a
 * SIGCHLD once it has been replaced by exec(2), when the child ends. An orphan has no such
 * tie. clone3(2) would have nothing more for us, and older container profiles refuse it.
 *
 * Where the program itself adopts orphans, as PID 1 does, a shadow without a mother would be the
 * child that each wait(2) waits for, and never ends. There it is a child of the program, without
 * a signal for its end: only __WALL shows it.
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
#include "core/task.h"

#define GUARD_BYTES (64ull << 10)
#define SECOND_STACK_END (96ull << 10)
#define STACK_END (240ull << 10)
/* Variables of threads lie before the thread pointer, the C library's record of the thread behind.
 * Of the former we use errno; what may be beyond it, of libraries that stand before the C library's
 * functions, they only read. */
#define BEYOND_ERRNO (64ull << 10)
#define RECORD_BYTES (12ull << 10)
/* More than a C library gives. */
#define VARIABLES_MAX (1ull << 30)
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
    int (*prepare)(struct attachment *);
};

uint8_t *birth_second_stack(const struct attachment *att)
{
    return att->shadow.place + SECOND_STACK_END;
}

/* How much comes before the thread pointer: as much as in the program's own threads, which may have
 * large variables of their own. */
static uint64_t variables(void)
{
    uint64_t pointer;

    __asm__("movq %%fs:0, %0" : "=r"(pointer));
    return ((pointer - (uintptr_t)&errno + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)) + BEYOND_ERRNO;
}

bool birth_guard(const struct attachment *att, bool up)
{
    return !mprotect(att->shadow.place, GUARD_BYTES, up ? PROT_NONE : PROT_READ | PROT_WRITE);
}

static int make_place(struct shadow *shadow)
{
    const uint64_t pointer = STACK_END + variables();
    const uint64_t bell = pointer + RECORD_BYTES, bytes = bell + PAGE_SIZE;

    if (pointer > VARIABLES_MAX)
        return -ENOTSUP;
    /* After mlockall(MCL_FUTURE) a mapping is filled when it is made. */
    uint8_t *place = mmap(NULL, bytes, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

    if (place == MAP_FAILED)
        return -errno;
    munlock(place, bytes);
    if (mprotect(place + GUARD_BYTES, bytes - GUARD_BYTES, PROT_READ | PROT_WRITE)) {
        const int err = -errno;

        munmap(place, bytes);
        return err;
    }
    madvise(place, bytes, MADV_DONTDUMP);
    shadow->place = place;
    shadow->bell = place + bell;
    return 0;
}

int birth_family(struct attachment *att)
{
    void *family = mmap(NULL, sizeof *att->shadow.family, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (family == MAP_FAILED)
        return -errno;
    madvise(family, sizeof *att->shadow.family, MADV_DONTDUMP);
    att->shadow.family = family;
    att->shadow.births = att->shadow.family->births;
    return 0;
}

static void *thread_pointer(const struct shadow *shadow)
{
    struct control_block *block = (struct control_block *)(shadow->bell - RECORD_BYTES);

    *block = (struct control_block){.self = block, .thread = block};
    __asm__("movq %%fs:0x28, %0" : "=r"(block->canary));
    __asm__("movq %%fs:0x30, %0" : "=r"(block->pointer_guard));
    return block;
}

static int live(void *arg)
{
    struct attachment *att = arg;

    att->shadow.life(att);
    syscall(SYS_exit_group, 0);
    return 0;
}

/* It has the thread-local storage of the program's thread, which waits. */
static int mother(void *arg)
{
    const struct newborn *newborn = arg;
    struct shadow *shadow = &newborn->att->shadow;
    const int err = newborn->prepare(newborn->att);

    if (err) {
        atomic_store(&shadow->state, err);
        return 0;
    }
    const int pid = task_new(live, newborn->att, shadow->place + STACK_END, BIRTH_CLONE,
                             thread_pointer(shadow), &shadow->alive);

    /* We may be killed here: the kernel has written `alive` already. */
    shadow->pid = pid;
    if (pid < 0)
        atomic_store(&shadow->state, pid);
    return 0;
}

/* Has no mother: it prepares itself. */
static int alone(void *arg)
{
    const struct newborn *newborn = arg;
    struct attachment *att = newborn->att;
    const int err = newborn->prepare(att); /* `arg` may be gone after that */

    if (!err)
        return live(att);
    birth_done(att, err);
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

static void reap(int pid)
{
    while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
        ;
}

/* The kernel wakes those who wait for its end, but not for this process alone. It is on its way
 * there, or killed; and we cannot go on before, as it uses our stacks. */
static void wait_for_end(const struct shadow *shadow)
{
    const struct timespec limit = {.tv_nsec = LOOK_NS};

    for (int pid; (pid = atomic_load(&shadow->alive));)
        futex(&shadow->alive, FUTEX_WAIT, pid, &limit);
    if (shadow->own_child && shadow->pid > 0 && shadow->program == getpid())
        reap(shadow->pid);
}

/* Whether it has come to something. */
static int is_born(void *arg)
{
    const struct shadow *shadow = arg;

    return atomic_load(&shadow->state) != SHADOW_BORN || !atomic_load(&shadow->alive);
}

/* Has a mother make it. 0 or -errno. */
static int have_born(struct newborn *newborn)
{
    const int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_UNTRACED;
    const int pid = task_new(mother, newborn, birth_second_stack(newborn->att), flags, NULL, NULL);

    if (pid < 0)
        return pid;
    /* It is at its end already, or we would still be in vfork: so this does not wait for long. */
    reap(pid);
    return 0;
}

struct errand {
    void (*run)(void *);
    void *arg;
};

static int run_errand(void *arg)
{
    const struct errand *errand = arg;

    errand->run(errand->arg);
    return 0;
}

void birth_errand(struct attachment *att, void (*run)(void *), void *arg)
{
    struct errand errand = {run, arg};
    const int flags = CLONE_VM | CLONE_VFORK | CLONE_UNTRACED;
    const int pid = task_new(run_errand, &errand, birth_second_stack(att), flags, NULL, NULL);

    if (pid > 0)
        reap(pid);
}

static int make_child(struct newborn *newborn)
{
    struct shadow *shadow = &newborn->att->shadow;

    shadow->pid = task_new(alone, newborn, shadow->place + STACK_END, BIRTH_CLONE,
                           thread_pointer(shadow), &shadow->alive);
    return shadow->pid < 0 ? shadow->pid : 0;
}

int birth(struct attachment *att, int (*prepare)(struct attachment *),
          void (*life)(struct attachment *))
{
    struct newborn newborn = {att, prepare};
    struct shadow *shadow = &att->shadow;
    const struct timespec limit = {.tv_nsec = LOOK_NS};
    int err = shadow->place ? 0 : make_place(shadow);

    if (err)
        return err;
    shadow->program = getpid();
    shadow->pid = 0;
    atomic_store(&shadow->alive, 0);
    shadow->life = life;
    atomic_store(&shadow->state, SHADOW_BORN);
    err = shadow->own_child ? make_child(&newborn) : have_born(&newborn);
    if (err)
        return err;
    if (!shadow->pid)
        shadow->pid = atomic_load(&shadow->alive);
    if (shadow->pid <= 0) { /* its mother was killed, or could not have it */
        err = atomic_load(&shadow->state);
        return err < 0 ? err : -ECHILD;
    }
    for (unsigned i = 0; i < AWAKE && !is_born(shadow) && !linger(is_born, shadow); i++)
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
        munmap(att->shadow.place, (size_t)(att->shadow.bell + PAGE_SIZE - att->shadow.place));
    if (att->shadow.family)
        munmap(att->shadow.family, sizeof *att->shadow.family);
    att->shadow.place = NULL;
    att->shadow.family = NULL;
}
