/*
 * preload/lock.c - mlock(2) and mlockall(2), if windows are among the memory to lock.
 *
 * The series locks nothing of an attachment: mlock() only says whether every page is in
 * the caller's tables, with MLOCK_ONFAULT, too, and VmLck never counts it. We must not lock
 * a window either: filling one of 512 GiB would touch every hole of it. With -o window=inner:
 * inner.h; mlockall() locks no window then either.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/attachments.h"
#include "client/present.h"
#include "msharefs.h"
#include "preload/inner.h"
#include "preload/range.h"
#include "preload/sys.h"

static bool may_lock_all(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

    return !syscall(SYS_capget, &head, data) && data[0].effective & 1u << CAP_IPC_LOCK;
}

/* The limit that the kernel checks before anything is locked. */
static int check_limit(uint64_t length)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) || may_lock_all())
        return 0;
    if (!limit.rlim_cur)
        return -EPERM;
    return length > limit.rlim_cur ? -ENOMEM : 0;
}

static int lock_part(struct attachment *att, struct range range, void *arg)
{
    const unsigned flags = *(unsigned *)arg;
    const uint64_t length = range.end - range.start;
    uint64_t start, pages;

    if (!att)
        return sys_mlock2((void *)range.start, length, flags) ? -errno : 0;
    start = attachment_offset(att, range.start);
    attachment_lock(att);
    pages = present_pages(att, start, start + length, NULL);
    attachment_unlock(att);
    return pages == length / PAGE_SIZE ? 0 : -ENOMEM;
}

static int unlock_part(struct attachment *att, struct range range, void *unused)
{
    (void)unused;
    if (att)
        return 0;
    return sys_munlock((void *)range.start, range.end - range.start) ? -errno : 0;
}

/* mlock(2) rounds its address down, unlike its relatives. */
static bool concerns(const void *addr, size_t length, struct range *range)
{
    const uint64_t in_page = (uintptr_t)addr % PAGE_SIZE;

    return length && preload_concerns((const char *)addr - in_page, length + in_page, range);
}

MSHARE_API int mlock2(const void *addr, size_t length, unsigned flags)
{
    struct range range;
    struct inner inner;
    int err;

    if (flags & ~(unsigned)MLOCK_ONFAULT || !concerns(addr, length, &range))
        return flags ? sys_mlock2(addr, length, flags) : sys_mlock(addr, length);
    err = inner_of(range, &inner);
    if (err)
        return preload_answer(err < 0 ? err : inner_verb(&inner, MSHAREFS_LOCK, flags));
    err = check_limit(range.end - range.start);
    if (err)
        return preload_answer(err);
    attachments_lock();
    err = preload_parts(range, lock_part, &flags);
    attachments_unlock();
    return preload_answer(err);
}

MSHARE_API int mlock(const void *addr, size_t length) { return mlock2(addr, length, 0); }

MSHARE_API int munlock(const void *addr, size_t length)
{
    struct range range;
    struct inner inner;
    int err;

    if (!concerns(addr, length, &range))
        return sys_munlock(addr, length);
    err = inner_of(range, &inner);
    if (err)
        return preload_answer(err < 0 ? err : inner_verb(&inner, MSHAREFS_UNLOCK, 0));
    attachments_lock();
    err = preload_parts(range, unlock_part, NULL);
    attachments_unlock();
    return preload_answer(err);
}

static int lock_quietly(struct attachment *att, struct range range, void *unused)
{
    (void)unused;
    if (!att) /* errors at holes and PROT_NONE do not matter to mlockall(2) */
        sys_mlock((void *)range.start, range.end - range.start);
    return 0;
}

/* Fills and locks all mappings except windows and host mms, each by itself, because
 * mlock(2) ends at the first hole. */
static void lock_mappings(void)
{
    char text[4096];
    size_t held = 0;
    ssize_t got;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

    while (fd >= 0 && (got = read(fd, text + held, sizeof text - 1 - held)) > 0) {
        char *line = text, *end;

        held += (size_t)got;
        text[held] = 0;
        for (; (end = strchr(line, '\n')); line = end + 1) {
            char *at = line;
            struct range range = {.start = strtoull(at, &at, 16)};

            range.end = *at == '-' ? strtoull(at + 1, NULL, 16) : 0;
            if (!attachment_of_tables(range.start))
                preload_parts(range, lock_quietly, NULL);
        }
        held -= (size_t)(line - text);
        memmove(text, line, held);
    }
    if (fd >= 0)
        sys_close(fd);
}

static int unlock_window(struct attachment *att, struct range range, void *unused)
{
    (void)unused;
    if (att) {
        sys_munlock((void *)range.start, range.end - range.start);
        sys_munlock(att->mm.header, att->mm.map_size);
    }
    return 0;
}

MSHARE_API int mlockall(int flags)
{
    const struct range all = {0, HOST_END};
    int failed;

    if (!(flags & MCL_CURRENT) || flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) ||
        !attachments_near(0, UINT64_MAX))
        return sys_mlockall(flags);
    attachments_lock();
    /* Mark all mappings without filling any, then take the mark off the windows. */
    failed = sys_mlockall(flags | MCL_ONFAULT);
    if (!failed) {
        preload_parts(all, unlock_window, NULL);
        if (flags & MCL_FUTURE && !(flags & MCL_ONFAULT))
            sys_mlockall(MCL_FUTURE);
        if (!(flags & MCL_ONFAULT))
            lock_mappings();
    }
    attachments_unlock();
    return failed;
}
