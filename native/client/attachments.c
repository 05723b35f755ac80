/* attachments.c - the table of attachments: its lock, who is where; see attachments.h. */
#define _GNU_SOURCE
#include "client/attachments.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct attachment attachments[ATTACHMENTS_MAX];
_Atomic unsigned attachments_used;

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local unsigned depth; /* how often this thread has the lock */
/* The signal mask of the thread that has the lock; protected by it. */
static sigset_t holder_mask;
static int holder_cancel, holder_errno;
static pid_t owner; /* the process that the attachments belong to; protected by the lock */
static pid_t bare;  /* one that has only inherited them; protected by the lock */

/* Every window since the last time that none was attached lies in [low, high). */
static _Atomic uint64_t low = UINT64_MAX, high;

/* A byte that is 1, and that the kernel wipes in whoever gets a copy of our memory. NULL: none. */
static _Atomic(uint8_t *) mark;

__attribute__((constructor)) static void begin(void) { owner = getpid(); }

void attachments_mark(void)
{
    uint8_t *page = mark;

    if (!page) {
        page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
            return;
        if (madvise(page, PAGE_SIZE, MADV_WIPEONFORK)) {
            munmap(page, PAGE_SIZE);
            return;
        }
    }
    *page = 1;
    mark = page;
}

/* In a child of a bare clone(2), which fork.c does not hear of: the threads that had locks are
 * not here to let go of them, nor the shadows. (A child of vfork(2) has our memory itself, with
 * the mark, and so the shadows.) */
static void forget_threads(void)
{
    pthread_mutex_init(&table_lock, NULL);
    bare = getpid();
    for (unsigned i = 0; i < attachments_used; i++) {
        lock_reset(&attachments[i].lock);
        atomic_store(&attachments[i].shadow.alive, 0);
    }
    attachments_mark();
}

void attachments_lock(void)
{
    const int saved = errno;
    sigset_t all, mask;
    int cancel;

    if (depth) {
        depth++;
        return;
    }
    /* A signal handler that unmaps or forks would wait for its own thread. One that comes
     * before they are blocked takes the lock and lets go of it: `depth` is 0 until then. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
    if (mark && !*mark)
        forget_threads();
    pthread_mutex_lock(&table_lock);
    holder_mask = mask;
    holder_cancel = cancel;
    holder_errno = saved;
    depth = 1;
}

void attachments_unlock(void)
{
    const sigset_t mask = holder_mask;
    const int cancel = holder_cancel, saved = holder_errno;

    if (--depth)
        return;
    pthread_mutex_unlock(&table_lock);
    pthread_setcancelstate(cancel, NULL);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    errno = saved;
}

void attachments_relock(void)
{
    owner = getpid();
    bare = 0;
    pthread_mutex_init(&table_lock, NULL);
    pthread_mutex_lock(&table_lock);
    if (mark)
        attachments_mark();
}

bool attachments_own(void) { return getpid() == owner; }

bool attachments_shared(void)
{
    if (attachments_own())
        return false;
    /* A copy of our memory has no mark, and then a number of its own in `bare`. */
    return mark ? *mark && !attachments_bare() : !syscall(SYS_kcmp, getpid(), owner, KCMP_VM, 0, 0);
}

bool attachments_bare(void) { return bare && getpid() == bare; }

bool attachment_overlaps(const struct attachment *att, uint64_t start, uint64_t end)
{
    return att->live && (uintptr_t)att->base < end && attachment_end(att) > start;
}

struct attachment *attachment_over(uint64_t start, uint64_t end)
{
    struct attachment *lowest = NULL;

    for (unsigned i = 0; i < attachments_used; i++)
        if (attachment_overlaps(&attachments[i], start, end) &&
            (!lowest || attachments[i].base < lowest->base))
            lowest = &attachments[i];
    return lowest;
}

bool attachments_split(uint64_t start, uint64_t end)
{
    for (unsigned i = 0; i < attachments_used; i++) {
        const struct attachment *att = &attachments[i];

        if (attachment_overlaps(att, start, end) && !is_adopted(att) &&
            ((uintptr_t)att->base < start || attachment_end(att) > end))
            return true;
    }
    return false;
}

struct attachment *attachment_of_tables(uint64_t addr)
{
    for (unsigned i = 0; i < attachments_used; i++)
        if (attachments[i].live && (uintptr_t)attachments[i].mm.header == addr)
            return &attachments[i];
    return NULL;
}

struct attachment *attachment_unused(void)
{
    const unsigned used = attachments_used;

    for (unsigned i = 0; i < used; i++)
        if (!attachments[i].live && !attachments[i].asking)
            return &attachments[i];
    if (used == ATTACHMENTS_MAX)
        return NULL;
    lock_reset(&attachments[used].lock);
    attachments_used = used + 1;
    return &attachments[used];
}

bool attachments_near(uint64_t start, uint64_t end)
{
    return start < atomic_load_explicit(&high, memory_order_relaxed) &&
           end > atomic_load_explicit(&low, memory_order_relaxed);
}

void attachments_cover(const struct attachment *att)
{
    uint64_t start = (uintptr_t)att->base, end = attachment_end(att);

    if (!attachments_shared())
        owner = getpid();
    if (!attachment_over(0, UINT64_MAX)) {
        atomic_store(&low, start);
        atomic_store(&high, end);
        return;
    }
    if (start < atomic_load(&low))
        atomic_store(&low, start);
    if (end > atomic_load(&high))
        atomic_store(&high, end);
}
