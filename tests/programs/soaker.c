/*
 * soaker.c REGION BOARD FILE HUGE INDEX SEED: a process that uses a region in every way, all the
 * time, and knows what it may find there. tests/soak/soak.py starts some, and kills them.
 *
 * The region has cells, each mapped as a whole: to zeroed memory, to the file FILE, to the file of
 * huge pages HUGE ("-": none), or not at all. The board, an object that all of them share with the
 * test (descriptor BOARD), says what is mapped in each:
 *
 *   version | generation | known | kind | prot
 *
 * Whoever changes a cell holds a lock on it (of the kind that ends with its holder), says that the
 * state is not known, makes the change, and says what it is now. An access between two looks that
 * found one and the same known state must have that state's outcome. A stamp says which page of
 * which kind it belongs to, and the generation of the mapping.
 *
 *   3 of 4 pages   stamped only under a shared lock on the cell: there is no stamp of another
 *                  generation, and a stamp that is there stays (`stored` says which are)
 *   1 of 4 pages   stamped at any time, also while the cell changes: a late stamp may come into a
 *                  later mapping
 *
 * Every line of it may be the last: processes are killed, stopped and forked at any time, and so is
 * the server.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <msharefs.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "trap.h"

#define PAGE 4096ul
#define MIB (1ul << 20)
/* As in soak.py. */
#define CELLS 48u
#define STRIDE (8 * MIB)
#define HUGE_CELLS 2u
#define WORDS 4u /* of each page are stamped */
#define WRONGS 32u
#define ENTRIES 8u /* of a process on the board: main, touchers, children */
#define TOUCHERS 2u
#define CHILDREN 3u
#define PROCESSES 16u
#define BUDGET (128ul << 10)

enum phase { RUN = 0, CALM = 1, STOP = 2 }; /* the last two bits of `phase`; above them a number */
enum kind { HOLE, ANON, FILED, HUGED };
enum wrong {
    WRONG_VALUE = 1,
    WRONG_LOST,
    WRONG_SIGNAL,
    WRONG_PASSED,
    WRONG_ERRNO,
    WRONG_CHILD,
    WRONG_DETACH,
};

struct board {
    _Atomic uint64_t phase, loads, stores, refused, changes, busy, failed, attaches, forks, wrong;
    uint64_t pad[6];
    struct {
        uint64_t what, pid, page, found, state, more, window, child;
    } wrongs[WRONGS];
    struct {
        _Atomic uint64_t pid, calm;
    } entries[PROCESSES * ENTRIES];
    _Atomic uint64_t cells[CELLS];
    _Atomic uint64_t stored[CELLS * STRIDE / PAGE]; /* in which generation */
};

static const char *path;
static struct board *board;
static int board_fd, file, huge, region = -1, locks[1 + TOUCHERS];
static unsigned self; /* my first entry */
static uint64_t chance;
static pthread_rwlock_t attached; /* read: accesses go on; write: the window comes or goes */
static uint8_t *base;
static bool may_store, child;
static pid_t children[CHILDREN];

static uint64_t draw(uint64_t *state, uint64_t below)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (*state >> 11) % below;
}

static void nap(long us) { nanosleep(&(struct timespec){0, us * 1000}, NULL); }

static void wrong(enum wrong what, uint64_t page, uint64_t found, uint64_t state, uint64_t more)
{
    const uint64_t number = atomic_fetch_add(&board->wrong, 1);

    if (number >= WRONGS)
        return;
    board->wrongs[number].pid = (uint64_t)getpid();
    board->wrongs[number].page = page;
    board->wrongs[number].found = found;
    board->wrongs[number].state = state;
    board->wrongs[number].more = more;
    board->wrongs[number].window = (uintptr_t)base;
    board->wrongs[number].child = child;
    board->wrongs[number].what = what;
    kill(getpid(), SIGSTOP); /* so that the test can look at it */
}

/* Cells */

static uint64_t state_of(uint64_t version, uint64_t generation, enum kind kind, int prot)
{
    return version << 32 | (generation & 0xffffff) << 8 | 1 << 6 | (uint64_t)kind << 3 |
           (uint64_t)prot;
}

static bool known(uint64_t state) { return state >> 6 & 1; }

static enum kind kind_of(uint64_t state) { return state >> 3 & 7; }

static int prot_of(uint64_t state) { return (int)(state & 7); }

static uint64_t generation_of(uint64_t state) { return state >> 8 & 0xffffff; }

/* Some lie on the border of two page tables, some in two of them, huge ones where huge pages can
 * be. */
static uint64_t cell_start(unsigned cell)
{
    return cell * STRIDE + (cell < HUGE_CELLS ? 0 : cell % 2 ? MIB : 2 * MIB - 32 * PAGE);
}

static uint64_t cell_pages(unsigned cell) { return cell < HUGE_CELLS ? 512 : cell % 2 ? 600 : 64; }

static uint64_t stamp(enum kind kind, uint64_t page, uint64_t generation, unsigned word)
{
    return (uint64_t)kind << 56 | page << 32 | (kind == ANON ? generation << 8 : 0) | word;
}

/* Whether any mapping of that page that there was can have had that word. */
static bool possible(uint64_t value, uint64_t page, uint64_t generation, unsigned word)
{
    const enum kind kind = value >> 56;
    const uint64_t then = generation_of(value);

    return !value || ((kind == ANON || kind == FILED || kind == HUGED) && then <= generation + 1 &&
                      value == stamp(kind, page, then, word));
}

static bool lock(int fd, unsigned cell, short type)
{
    struct flock range = {.l_type = type, .l_start = cell, .l_len = 1};

    return !fcntl(fd, F_OFD_SETLK, &range);
}

/* Accesses */

__attribute__((noinline)) static bool try_load(volatile uint64_t *at, uint64_t *value,
                                               struct trap *trap)
{
    volatile bool done = false;

    if (TRY(*trap)) {
        *value = *at;
        done = true;
    }
    trap_current = NULL;
    return done;
}

__attribute__((noinline)) static bool try_store(volatile uint64_t *at, uint64_t value,
                                                struct trap *trap)
{
    volatile bool done = false;

    if (TRY(*trap)) {
        *at = value;
        done = true;
    }
    trap_current = NULL;
    return done;
}

/* `same`: the cell's state was known and did not change meanwhile. */
static void check_signal(const struct trap *trap, const volatile uint64_t *at, uint64_t page,
                         uint64_t state, bool same, int needed)
{
    int code = SEGV_ACCERR;

    atomic_fetch_add(&board->refused, 1);
    if (same)
        code = kind_of(state) == HOLE ? SEGV_MAPERR : SEGV_ACCERR;
    if (trap->signo != SIGSEGV || trap->addr != (uintptr_t)at ||
        (same && (trap->code != code || (kind_of(state) != HOLE && prot_of(state) & needed))))
        wrong(WRONG_SIGNAL, page, (uint64_t)trap->signo << 32 | (unsigned)trap->code, state,
              trap->addr - (uintptr_t)at);
}

static void check_value(uint64_t value, uint64_t page, unsigned word, uint64_t state, bool same,
                        uint64_t stored)
{
    const uint64_t generation = generation_of(state);

    if (!possible(value, page, generation_of(atomic_load(&board->cells[page * PAGE / STRIDE])),
                  word))
        wrong(WRONG_VALUE, page, value, state, word);
    else if (same && (!(prot_of(state) & PROT_READ) || kind_of(state) == HOLE))
        wrong(WRONG_PASSED, page, value, state, word);
    else if (!same || page % 4 == 3)
        return;
    else if (!value && (stored == generation || kind_of(state) != ANON))
        wrong(WRONG_LOST, page, value, state, word);
    else if (value && value != stamp(kind_of(state), page, generation, word))
        wrong(WRONG_VALUE, page, value, state, word);
}

static bool load(unsigned cell, uint64_t page, unsigned word)
{
    volatile uint64_t *at = (volatile uint64_t *)(base + page * PAGE + word * (PAGE / WORDS));
    const uint64_t before = atomic_load(&board->cells[cell]);
    const uint64_t stored = atomic_load(&board->stored[page]);
    uint64_t value = 0;
    struct trap trap;
    const bool done = try_load(at, &value, &trap);
    const bool same = known(before) && atomic_load(&board->cells[cell]) == before;

    atomic_fetch_add(&board->loads, 1);
    if (done)
        check_value(value, page, word, before, same, stored);
    else
        check_signal(&trap, at, page, before, same, PROT_READ);
    return done;
}

static void store(unsigned cell, uint64_t page, bool locked)
{
    const uint64_t before = atomic_load(&board->cells[cell]);
    const enum kind kind = kind_of(before) == HOLE ? ANON : kind_of(before);

    for (unsigned word = 0; word < WORDS; word++) {
        volatile uint64_t *at = (volatile uint64_t *)(base + page * PAGE + word * (PAGE / WORDS));
        struct trap trap;
        const bool done = try_store(at, stamp(kind, page, generation_of(before), word), &trap);
        const bool same = known(before) && atomic_load(&board->cells[cell]) == before;

        atomic_fetch_add(&board->stores, 1);
        if (!done) {
            check_signal(&trap, at, page, before, same, PROT_WRITE);
            return;
        }
        if (same && (kind_of(before) == HOLE || !(prot_of(before) & PROT_WRITE)))
            wrong(WRONG_PASSED, page, 0, before, word);
    }
    if (locked)
        atomic_store(&board->stored[page], generation_of(before));
}

/* Some accesses to one cell; then it is taken out of this process's own tables, so that the next
 * are faults again. */
static void visit(uint64_t *state, int lock_fd)
{
    const unsigned cell = (unsigned)draw(state, CELLS);
    const uint64_t first = cell_start(cell) / PAGE;
    const bool held = may_store && draw(state, 2) && lock(lock_fd, cell, F_RDLCK);
    const bool firm = held && known(atomic_load(&board->cells[cell]));

    for (uint64_t left = 1 + draw(state, 24); left; left--) {
        const uint64_t page = first + draw(state, cell_pages(cell));

        if (may_store && (page % 4 == 3 ? draw(state, 2) : firm))
            store(cell, page, page % 4 != 3);
        if (!load(cell, page, (unsigned)draw(state, WORDS)))
            break; /* signals cost time, and all are the same */
    }
    if (held)
        lock(lock_fd, cell, F_UNLCK);
    if (draw(state, 3) == 0 && cell >= HUGE_CELLS)
        madvise(base + first * PAGE, cell_pages(cell) * PAGE, MADV_DONTNEED);
}

/* True: do nothing now. The test sees that this thread does nothing. */
static bool calm(unsigned entry)
{
    const uint64_t phase = atomic_load(&board->phase);

    if (phase % 4 == RUN)
        return false;
    if (phase % 4 == STOP)
        _exit(0);
    atomic_store(&board->entries[entry].calm, phase);
    nap(1000);
    return true;
}

static void appear(unsigned entry)
{
    atomic_store(&board->entries[entry].calm, 0);
    atomic_store(&board->entries[entry].pid, (uint64_t)getpid());
}

static void *touch(void *arg)
{
    const unsigned number = (unsigned)(uintptr_t)arg;
    uint64_t state = chance * (number + 3) | 1;

    appear(self + 1 + number);
    for (;;) {
        if (calm(self + 1 + number))
            continue;
        pthread_rwlock_rdlock(&attached);
        if (base)
            visit(&state, locks[1 + number]);
        pthread_rwlock_unlock(&attached);
        nap((long)draw(&state, 1000)); /* so that others have processors, too */
    }
    return NULL;
}

/* Changes */

static int open_region(void)
{
    if (region < 0)
        region = open(path, O_RDWR | O_CLOEXEC);
    return region;
}

static void forget_region(void)
{
    if (region >= 0)
        close(region);
    region = -1;
}

/* What the end of a server looks like from here; also that of the one before, whose file is still
 * open. */
static bool is_absence(int error)
{
    switch (error) {
    case ENOTCONN:
    case ECONNABORTED:
    case ECONNREFUSED:
    case ECONNRESET:
    case EINTR:
    case ENODEV:
    case ENOENT:
    case ENOTTY:
    case EPIPE:
    case ETIMEDOUT:
        return true;
    default:
        return false;
    }
}

static int map(unsigned cell, enum kind kind, int prot)
{
    const uint64_t start = cell_start(cell), size = cell_pages(cell) * PAGE;
    const int flags = MAP_SHARED | MAP_FIXED;

    if (kind == ANON)
        return mshare_map(region, (off_t)start, size, prot, flags | MAP_ANONYMOUS, -1, 0);
    if (kind == HUGED)
        return mshare_map(region, (off_t)start, size, prot, flags, huge, (off_t)(cell * size));
    return mshare_map(region, (off_t)start, size, prot, flags, file, (off_t)start);
}

static void change(void)
{
    static const int rights[] = {0, PROT_READ, PROT_READ | PROT_WRITE};
    const unsigned cell = (unsigned)draw(&chance, CELLS);
    const enum kind object = cell < HUGE_CELLS && huge >= 0 ? HUGED : FILED;

    if (open_region() < 0 || !lock(locks[0], cell, F_WRLCK))
        return;
    const uint64_t old = atomic_load(&board->cells[cell]), version = (old >> 32) + 2;
    uint64_t generation = generation_of(old);
    enum kind kind = kind_of(old);
    int prot = prot_of(old), failed;

    atomic_store(&board->cells[cell], (version - 1) << 32 | generation << 8);
    const unsigned how = (unsigned)draw(&chance, 8);
    if (known(old) && kind != HOLE && how < 3) {
        prot = rights[draw(&chance, 3)];
        failed = mshare_protect(region, (off_t)cell_start(cell), cell_pages(cell) * PAGE, prot);
    } else if (known(old) && how < 4) {
        kind = HOLE;
        generation++;
        failed = mshare_unmap(region, (off_t)cell_start(cell), cell_pages(cell) * PAGE);
    } else {
        kind = how % 2 ? object : ANON;
        prot = draw(&chance, 4) ? PROT_READ | PROT_WRITE : PROT_READ;
        generation++;
        failed = map(cell, kind, prot);
    }
    const int error = failed ? errno : 0;
    if (!failed)
        atomic_store(&board->cells[cell], state_of(version, generation, kind, prot));
    else if (error == EBUSY && known(old)) /* then nothing has changed, for anybody */
        atomic_store(&board->cells[cell], (version << 32) | (uint32_t)old);
    else /* a generation that may have begun */
        atomic_store(&board->cells[cell], version << 32 | ((generation & 0xffffff) << 8));
    lock(locks[0], cell, F_UNLCK);
    atomic_fetch_add(failed && error == EBUSY ? &board->busy
                     : failed                 ? &board->failed
                                              : &board->changes,
                     1);
    if (failed && error != EBUSY) {
        forget_region();
        if (!is_absence(error))
            wrong(WRONG_ERRNO, cell_start(cell) / PAGE, (uint64_t)error, old, how);
    }
}

static void detach(void)
{
    pthread_rwlock_wrlock(&attached);
    if (base && mshare_detach(base))
        wrong(WRONG_DETACH, 0, (uint64_t)errno, 0, 0);
    base = NULL;
    pthread_rwlock_unlock(&attached);
}

static void attach(void)
{
    const int prot = draw(&chance, 8) ? PROT_READ | PROT_WRITE : PROT_READ;
    void *got = open_region() < 0
                    ? MAP_FAILED
                    : mshare_attach(region, 0, 0, NULL, prot & PROT_WRITE ? 0 : MSHARE_ATTACH_READ);

    if (got == MAP_FAILED) { /* the server is away */
        forget_region();
        nap(5000);
        return;
    }
    if (draw(&chance, 2))
        mshare_budget(got, BUDGET);
    pthread_rwlock_wrlock(&attached);
    may_store = prot & PROT_WRITE;
    base = got;
    pthread_rwlock_unlock(&attached);
    atomic_fetch_add(&board->attaches, 1);
}

/* A lock of its own for each thread: `locks` are those of the parent. */
static void open_locks(unsigned count)
{
    char name[32];

    snprintf(name, sizeof name, "/proc/self/fd/%d", board_fd);
    for (unsigned i = 0; i <= TOUCHERS; i++) {
        if (locks[i])
            close(locks[i]);
        locks[i] = i < count ? open(name, O_RDWR | O_CLOEXEC) : -1;
        if (i < count && locks[i] < 0)
            _exit(3);
    }
}

static _Noreturn void be_child(unsigned entry, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(0);
    child = true;
    appear(entry);
    open_locks(1);
    for (uint64_t left = draw(&chance, 200); left;) {
        if (calm(entry))
            continue;
        left--;
        if (draw(&chance, 16) == 0)
            change();
        else
            visit(&chance, locks[0]);
        nap((long)draw(&chance, 2000));
    }
    if (draw(&chance, 2) && mshare_detach(base))
        wrong(WRONG_DETACH, 0, (uint64_t)errno, 0, 1);
    _exit(0);
}

static void bear(void)
{
    const pid_t me = getpid();
    unsigned free = 0;

    while (free < CHILDREN && children[free])
        free++;
    if (free == CHILDREN || !base)
        return;
    const uint64_t seed = draw(&chance, 1ull << 40) | 1;
    const pid_t pid = fork();
    if (!pid) {
        chance = seed;
        be_child(self + 1 + TOUCHERS + free, me);
    }
    children[free] = pid > 0 ? pid : 0;
    atomic_fetch_add(&board->forks, 1);
}

static void reap(void)
{
    int status;

    for (unsigned i = 0; i < CHILDREN; i++) {
        if (!children[i] || waitpid(children[i], &status, WNOHANG) != children[i])
            continue;
        if (status && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
            wrong(WRONG_CHILD, 0, (uint64_t)status, 0, (uint64_t)children[i]);
        children[i] = 0;
        atomic_store(&board->entries[self + 1 + TOUCHERS + i].pid, 0);
    }
}

static void start(void)
{
    pthread_rwlockattr_t attr;

    /* Whoever waits to write is not overtaken for ever. */
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&attached, &attr);
    open_locks(1 + TOUCHERS);
    for (unsigned i = 1 + TOUCHERS; i < ENTRIES; i++)
        atomic_store(&board->entries[self + i].pid, 0);
    appear(self);
    for (uintptr_t i = 0; i < TOUCHERS; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, touch, (void *)i))
            _exit(3);
    }
}

int main(int argc, char **argv)
{
    if (argc != 7)
        return 2;
    path = argv[1];
    board_fd = atoi(argv[2]);
    file = open(argv[3], O_RDWR | O_CLOEXEC);
    huge = strcmp(argv[4], "-") ? open(argv[4], O_RDWR | O_CLOEXEC) : -1;
    self = (unsigned)atoi(argv[5]) % PROCESSES * ENTRIES;
    chance = strtoull(argv[6], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, board_fd, 0);
    if (file < 0 || board == MAP_FAILED)
        return 3;
    trap_install();
    start();
    for (;;) {
        reap();
        if (calm(self))
            continue;
        const uint64_t what = draw(&chance, 100);
        if (!base)
            attach();
        else if (what < 60)
            change();
        else if (what < 75)
            bear();
        else if (what < 82)
            detach();
        else if (what < 90)
            mshare_budget(base, draw(&chance, 2) ? BUDGET : 0);
        else
            visit(&chance, locks[0]);
        nap((long)draw(&chance, 4000));
    }
}
