/* view.c - the window as the kernel sees it; see view.h. */
#define _GNU_SOURCE
#include "client/view.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/control.h"
#include "core/uffd.h"
#include "core/vma.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* A reader's is private, because userfaultfd takes only what might be written. It has the file's
 * own pages all the same: the program has no right to write. */
int view_flags(const struct attachment *att)
{
    return (att->reader ? MAP_PRIVATE : MAP_SHARED) | MAP_NORESERVE;
}

static int map(const struct attachment *att, uint64_t start, uint64_t end, int prot)
{
    uint8_t *at = attachment_at(att, start);
    void *got = mmap(at, end - start, prot, view_flags(att) | MAP_FIXED, att->mem_fd, (off_t)start);

    if (got == MAP_FAILED)
        return -errno;
    munlock(at, end - start);
    /* A core dump would walk the whole window page by page. */
    if (!is_adopted(att))
        madvise(at, end - start, MADV_DONTDUMP);
    return 0;
}

int view_map_part(const struct attachment *att, uint64_t start, uint64_t end)
{
    /* It must not be accessed before it is watched: pages that came in between would come
     * without us, and stay. Other threads may be using a window that was there before. Nor
     * may it be filled when it is made, after mlockall(MCL_FUTURE). */
    return map(att, start, end, PROT_NONE);
}

int view_map(const struct attachment *att)
{
    return view_map_part(att, att->offset, attachment_limit(att));
}

int view_map_over(const struct attachment *att)
{
    return map(att, att->offset, attachment_limit(att), att->prot);
}

int view_uffd(const struct attachment *att, uint64_t more)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
                    UFFD_FEATURE_WP_HUGETLBFS_SHMEM | more,
    };
    int uffd = uffd_new(att->dev_fd);

    if (uffd < 0)
        return uffd;
    uffd = control_hide_fd(uffd);
    if (uffd >= 0 && ioctl(uffd, UFFDIO_API, &api)) {
        const int err = errno == EINVAL ? -ENOSYS : -errno;

        close(uffd);
        return err;
    }
    return uffd;
}

/* The program may have unmapped parts of adopted memory. */
static int watch_pieces(const struct attachment *att)
{
    int err = 0;

    for (unsigned i = 0; i < att->pieces.count && !err; i++) {
        const struct piece *piece = &att->pieces.list[i];

        err = uffd_watch(att->uffd, piece->start, piece->end - piece->start);
    }
    return err;
}

int view_watch(struct attachment *att)
{
    int err = view_uffd(att, 0);

    if (err < 0)
        return err;
    att->uffd = err;
    return is_adopted(att) ? watch_pieces(att)
                           : uffd_watch(att->uffd, (uintptr_t)att->base, att->length);
}

/* No other function wakes threads: a thread goes on only when its fault has left the epoch,
 * so a process that is stopped after an access holds nobody up. */
void view_wake(const struct attachment *att, uint64_t start, uint64_t end)
{
    struct uffdio_range range = {(uintptr_t)attachment_at(att, start), end - start};

    ioctl(att->uffd, UFFDIO_WAKE, &range);
    if (att->moved_uffd >= 0)
        ioctl(att->moved_uffd, UFFDIO_WAKE, &range);
}

void view_wake_all(const struct attachment *att)
{
    view_wake(att, att->offset, attachment_limit(att));
}

int view_drop(uint64_t start, uint64_t end)
{
    /* ENOMEM: the program has unmapped a part of its window; the rest is done. */
    return madvise((void *)start, end - start, MADV_DONTNEED_LOCKED) && errno != ENOMEM ? -errno
                                                                                        : 0;
}

int view_prot(const struct attachment *att, uint32_t flags)
{
    return att->prot | (flags & VMA_EXEC ? PROT_EXEC : 0);
}

/* x86 has no pages that can be written but not read. */
static int readable(int prot) { return prot & PROT_WRITE ? prot | PROT_READ : prot; }

int view_block_prot(const struct attachment *att, uint32_t flags, uint64_t offset)
{
    const int prot = flags & VMA_PROT ? PROT_READ | (flags & VMA_WRITE ? PROT_WRITE : 0)
                                      : PROT_NONE;
    const int exec = flags & VMA_EXEC ? PROT_EXEC : 0;
    const int own = unshared_prot(&att->unshared, offset, readable(att->prot) | PROT_EXEC);

    return (prot | exec) & readable(own);
}

int view_prot_at(const struct attachment *att, uint64_t offset)
{
    struct mm_vma vma;
    const int prot = vma_find(&att->mm, offset, &vma) ? att->prot : view_prot(att, vma.flags);

    return unshared_prot(&att->unshared, offset, prot);
}
