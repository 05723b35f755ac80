/*
 * objects.c - the files behind mappings that are not anonymous.
 *
 *   window     ......wwwwwwwwwwwwwwww......     w: .mem under userfaultfd
 *                        ^ a fault
 *   window     ......wwwwBBBBwwwwwwww......     B: a block of the object, mmap(2)
 *
 * The first access to a block comes to us, like one to anonymous memory, and is decided
 * on the host mm. Then the block is mapped over the window, and from there on the kernel
 * serves it alone. An access past the file's end gets the kernel's own SIGBUS, and so does
 * one that finds the file system full or the pool of huge pages empty. The block is the
 * same memory that others read(2) and write(2). It goes when the server says so (REVOKE;
 * arrange.c).
 *
 * The server may be waiting for us to leave a fault, so nobody waits for the server
 * here: we ask for the descriptor of an object, leave the thread that faulted where it
 * is, and wake it when the answer comes (service.c). A server that is away is asked
 * when it is back. If the process had no room for the descriptor, we ask again.
 *
 * Runs on the service thread: no malloc, no stdio, no region memory.
 */
#define _GNU_SOURCE
#include "client/objects.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/attachments.h"
#include "client/own.h"
#include "client/poison.h"
#include "client/spare.h"
#include "client/view.h"
#include "core/control.h"
#include "core/linger.h"
#include "core/touched.h"

/* The time until we ask again for a descriptor that there was no room for. */
#define AGAIN_MS 100
/* How long we ask anew for a descriptor that cannot be mapped as its mapping says. */
#define UNFIT_MS CONTROL_TIMEOUT_MS

/* When the service thread has something to do for any attachment; 0: never. */
static uint64_t again_ms;

static void choose_block(const struct attachment *att, struct fault *fault, uint64_t file_size)
{
    const struct mm_vma *vma = &fault->vma;
    const uint64_t page = vma->flags & VMA_HUGE ? PMD_SIZE : PAGE_SIZE;
    const uint64_t block = fault_block(vma);
    const uint64_t behind = file_size > vma->offset ? file_size - vma->offset : 0;

    fault->start = fault->offset & ~(block - 1);
    fault->end = fault->start + block;
    if (fault->start < vma->start)
        fault->start = vma->start;
    if (fault->end > vma->end)
        fault->end = vma->end;
    attachment_clip(att, &fault->start, &fault->end); /* a block may be larger than a quantum */
    fault->limit = vma->start + ((behind + page - 1) & ~(page - 1));
}

static struct object *find(struct attachment *att, uint32_t number)
{
    for (unsigned i = 0; i < OBJECTS_MAX; i++)
        if (att->objects[i].state != OBJECT_NONE && att->objects[i].number == number)
            return &att->objects[i];
    return NULL;
}

/* From Linux's own copy, without asking the file system: that may be slow, or hang, or be
 * served by this very program, and faults in all other memory wait for us. No path, since a
 * shadow may not use any (confine.h). */
static bool look_at(int fd, struct statx *found)
{
    return !syscall(SYS_statx, fd, NULL, AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_SIZE,
                    found);
}

static uint64_t device_of(const struct statx *found)
{
    return (uint64_t)found->stx_dev_major << 32 | found->stx_dev_minor;
}

/* Whether `fd` still is the file that came; otherwise it is the program's, not ours to close. A
 * shadow's table is its own. */
static bool is_ours(const struct attachment *att, const struct object *object, struct statx *found)
{
    if (has_shadow(att))
        return look_at(object->fd, found);
    return look_at(object->fd, found) && device_of(found) == object->device &&
           found->stx_ino == object->inode;
}

static void drop(const struct attachment *att, struct object *object)
{
    struct statx found;

    if (object->state == OBJECT_HELD && is_ours(att, object, &found))
        close(object->fd);
    object->state = OBJECT_NONE;
}

static struct object *place(struct attachment *att, uint32_t number)
{
    struct object *object = &att->objects[att->objects_at];

    att->objects_at = (att->objects_at + 1) % OBJECTS_MAX;
    drop(att, object);
    object->number = number;
    return object;
}

static int ask(struct attachment *att, uint32_t number, bool writing)
{
    const struct msg msg = {.op = MSG_OBJECT, .seq = SEQ_OBJECT | number, .arg = {number}};
    struct object *object;

    if (att->ctl >= 0 && control_send(att->ctl, &msg, NULL, 0, CONTROL_AT_ONCE) == -ETIMEDOUT)
        return -EAGAIN;
    /* Other errors mean that the server is gone: see objects_unask(). */
    object = place(att, number);
    object->writing = writing;
    object->state = OBJECT_ASKED;
    return -EINPROGRESS;
}

int object_find(struct attachment *att, struct fault *fault)
{
    const bool writing = view_block_prot(att, fault->vma.flags, fault->offset) & PROT_WRITE;
    struct object *object = find(att, fault->vma.object);
    struct statx found;

    if (is_adopted(att)) /* the program arranges that memory; nobody maps objects there */
        return -EUCLEAN;
    if (object && (object->state == OBJECT_ASKED || object->state == OBJECT_LOST))
        return -EINPROGRESS;
    if (object && object->state == OBJECT_FAILED)
        return -ENOENT;
    if (object && (!is_ours(att, object, &found) || (writing && !object->writing))) {
        drop(att, object);
        object = NULL;
    }
    if (!object)
        return ask(att, fault->vma.object, writing);
    choose_block(att, fault, found.stx_size);
    return 0;
}

bool object_held(struct attachment *att, uint32_t number)
{
    const struct object *object = find(att, number);

    return object && object->state == OBJECT_HELD;
}

/* mmap(2) of a hugetlbfs file for writing makes the file as long as the mapping. CREATE_MAPPING
 * has done that; if somebody has made it shorter since, it must stay so. */
static int map_huge_block(uint8_t *at, uint64_t bytes, int prot, int fd, off_t offset)
{
    uint8_t *got = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, offset);
    int err = 0;

    if (got == MAP_FAILED)
        return -errno;
    if (mprotect(got, bytes, prot) ||
        mremap(got, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED) {
        err = -errno;
        munmap(got, bytes);
    }
    return err;
}

/* Whether it is the descriptor that does not do. EACCES: it is open for reading only, since no
 * mapping let the file be written when the server looked, after we had asked. EBADF: the program
 * has closed it. */
static bool is_unfit(int err) { return err == -EACCES || err == -EBADF; }

/* Lets go of it, so that the thread that faults again asks for another one. */
static int ask_anew(struct attachment *att, struct object *object, int err)
{
    const uint64_t now = clock_ns(CLOCK_MONOTONIC) / 1000000u;

    if (!att->unfit_ms)
        att->unfit_ms = now + UNFIT_MS;
    if (now > att->unfit_ms)
        return err;
    drop(att, object);
    return -EAGAIN;
}

static int map_block(uint8_t *at, uint64_t bytes, int prot, int fd, off_t offset, bool huge)
{
    if (huge && prot & PROT_WRITE)
        return map_huge_block(at, bytes, prot, fd, offset);
    return mmap(at, bytes, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, offset) == MAP_FAILED
               ? -errno
               : 0;
}

struct block {
    struct attachment *att;
    const struct fault *fault;
    int fd;
    bool reached; /* the page of the fault */
};

/* Maps what is left of the window where the block is to be, nearly always all. */
static int map_part(void *arg, uint64_t start, uint64_t end)
{
    struct block *block = arg;
    const struct mm_vma *vma = &block->fault->vma;
    struct attachment *att = block->att;
    uint8_t *at = attachment_at(att, start);
    const int prot = view_block_prot(att, vma->flags, start);
    const off_t offset = (off_t)(vma->offset + (start - vma->start));
    int err = map_block(at, end - start, prot, block->fd, offset, vma->flags & VMA_HUGE);

    if (err == -ENOMEM) { /* perhaps the process has as many mappings as it may have */
        spare_give(att->spare);
        err = map_block(at, end - start, prot, block->fd, offset, vma->flags & VMA_HUGE);
    }
    if (err)
        return err;
    if (start <= block->fault->offset && block->fault->offset < end)
        block->reached = true;
    poison_forget(att, start, end);
    /* Like the window around it. */
    madvise(at, end - start, MADV_DONTDUMP);
    if (att->advice & ADVICE_DONTFORK)
        madvise(at, end - start, MADV_DONTFORK);
    return 0;
}

int64_t object_map(struct attachment *att, const struct fault *fault)
{
    struct object *object = find(att, fault->vma.object);

    if (!object || object->state != OBJECT_HELD)
        return -EUCLEAN;
    touched_mark(&att->mm, att->slot, fault->start, fault->end - fault->start);
    struct block block = {att, fault, object->fd, false};
    int err = own_each(att, own_maps(att), OWN_MEMORY, fault->start, fault->end, map_part, &block);

    if (!err && !block.reached && own_release(att, fault->offset) < 0)
        err = -EUCLEAN;
    if (is_unfit(err))
        return ask_anew(att, object, err);
    if (err)
        return err == -EAGAIN ? -ENOMEM : err; /* EAGAIN: more than may be locked */
    att->unfit_ms = 0;
    const uint64_t end = fault->end < fault->limit ? fault->end : fault->limit;
    return fault->start < end ? (int64_t)((end - fault->start) / PAGE_SIZE) : 0;
}

/* Whether it may succeed in a while after this error: there is no room for a descriptor now, here
 * or in the server; or the program has closed the one that came; or the file system does not
 * answer the server, for which an access waits in Linux, too. */
static bool passes(int err)
{
    return err == -EMFILE || err == -ENFILE || err == -ENOMEM || err == -EAGAIN || err == -EINTR ||
           err == -EBADF || err == -ETIMEDOUT;
}

/* Takes the descriptor of an object that we asked for. Returns 0 or -errno; then `fd` is closed. */
static int keep(struct object *object, int fd)
{
    struct statx found;

    if (fd < 0)
        return fd;
    fd = control_hide_fd(fd);
    if (fd < 0)
        return fd;
    if (!look_at(fd, &found)) {
        const int err = -errno;

        close(fd);
        return err;
    }
    object->fd = fd;
    object->device = device_of(&found);
    object->inode = found.stx_ino;
    object->state = OBJECT_HELD;
    return 0;
}

void object_answer(struct attachment *att, uint32_t number, int fd)
{
    struct object *object = find(att, number);

    if (!object || object->state != OBJECT_ASKED) { /* dropped meanwhile, and asked for anew */
        if (fd >= 0)
            close(fd);
    } else {
        const int err = keep(object, fd);

        if (passes(err)) {
            uint64_t *again = has_shadow(att) ? &att->objects_again_ms : &again_ms;

            object->state = OBJECT_LOST;
            if (!*again)
                *again = clock_ns(CLOCK_MONOTONIC) / 1000000u + AGAIN_MS;
            return; /* threads that wait for it go on waiting */
        }
        if (err)
            object->state = OBJECT_FAILED;
    }
    view_wake_all(att);
}

static void forget(struct attachment *att, enum object_state state)
{
    for (unsigned i = 0; i < OBJECTS_MAX; i++)
        if (att->objects[i].state == state)
            att->objects[i].state = OBJECT_NONE;
}

void objects_unask(struct attachment *att)
{
    forget(att, OBJECT_ASKED);
    forget(att, OBJECT_LOST);
    forget(att, OBJECT_FAILED);
}

/* Threads that wait fault again, and ask. */
static void ask_again(struct attachment *att)
{
    forget(att, OBJECT_LOST);
    view_wake_all(att);
}

int objects_tick(struct attachment *att)
{
    const uint64_t now = clock_ns(CLOCK_MONOTONIC) / 1000000u;

    if (!att->objects_again_ms)
        return -1;
    if (now < att->objects_again_ms)
        return (int)(att->objects_again_ms - now);
    att->objects_again_ms = 0;
    ask_again(att);
    return -1;
}

int objects_tick_all(void)
{
    const uint64_t now = again_ms ? clock_ns(CLOCK_MONOTONIC) / 1000000u : 0;

    if (now < again_ms)
        return (int)(again_ms - now);
    if (!again_ms)
        return -1;
    again_ms = 0;
    for (unsigned i = 0; i < attachments_used; i++) {
        struct attachment *att = &attachments[i];

        attachment_lock(att);
        if (att->live)
            ask_again(att);
        attachment_unlock(att);
    }
    return -1;
}

void objects_drop(struct attachment *att)
{
    for (unsigned i = 0; i < OBJECTS_MAX; i++)
        drop(att, &att->objects[i]);
}

int *object_descriptor(struct attachment *att, int fd)
{
    for (unsigned i = 0; i < OBJECTS_MAX; i++)
        if (att->objects[i].state == OBJECT_HELD && att->objects[i].fd == fd)
            return &att->objects[i].fd;
    return NULL;
}
