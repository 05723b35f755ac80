/*
 * preload/adopt.c - shared memory that the program makes for itself, as a region.
 *
 * `msharefs run --adopt-anon SIZE` asks for it: an anonymous shared mapping of at least that
 * size becomes a region without a name. For the program it is plain memory, and it is: a plain
 * shared mapping of the region's memory, an object without a name like Linux's own. Nothing of
 * ours is in the process after that, nor in its children, and what there is to know of the
 * region is seen from outside (msharefs/server/adopted.py).
 *
 *   Linux's own memory   ssssssss   says whether it may be, and where
 *   over it              rrrrrrrr   the region's memory, if one can be had
 *
 * With a budget of page tables somebody has to count the faults: then it is an attachment, which
 * the program may unmap, protect and advise in parts; the region has one mapping from end to
 * end, with all rights.
 *
 * Huge pages are left alone, and with a budget locked, executable and 32-bit memory, too.
 */
#define _GNU_SOURCE
#include "preload/adopt.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "client/api.h"
#include "core/control.h"
#include "msharefs.h"
#include "preload/filter.h"
#include "preload/refused.h"
#include "preload/sys.h"
#include "preload/tell.h"

/* Another process may be using a name at the moment. */
#define NAMES_TRIED 100u

/* MAP_STACK, which means nothing to Linux. To the server: the memory must fit where regions are,
 * and be able to become executable, whatever was asked for, or the region is not to be. */
#define MUST_FIT MAP_STACK

static uint64_t least = UINT64_MAX; /* the fewest bytes to be adopted */
static bool budget;                 /* the program has one */
static char mount[PATH_MAX / 2];

/* The strings are copied: a program that shows its state in ps(1) writes over its environment. */
__attribute__((constructor)) static void read_environment(void)
{
    const char *size = getenv("MSHAREFS_ADOPT_ANON"), *where = getenv("MSHAREFS_MOUNT");

    if (!where || strlen(where) >= sizeof mount)
        return;
    strcpy(mount, where);
    budget = getenv("MSHAREFS_PT_BUDGET") && *getenv("MSHAREFS_PT_BUDGET");
    if (size)
        least = strtoull(size, NULL, 10);
}

/* The mount's quantum, or 0 and errno. */
static uint64_t quantum(void)
{
    char path[PATH_MAX], text[32];
    ssize_t got;
    int fd;

    snprintf(path, sizeof path, "%s/mshare_info", mount);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    got = read(fd, text, sizeof text - 1);
    sys_close(fd);
    text[got < 0 ? 0 : got] = 0;
    return strtoull(text, NULL, 10);
}

/* A new region file; its name is in `path`. */
static int make_file(char path[PATH_MAX])
{
    int fd = -1;

    for (unsigned i = 0; fd < 0 && i < NAMES_TRIED; i++) {
        snprintf(path, PATH_MAX, "%s/.anon-%d-%u", mount, (int)getpid(), i);
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST)
            break;
    }
    return fd;
}

/* Sizing a file beyond RLIMIT_FSIZE would be SIGXFSZ; memory does not have that limit. */
static bool may_size(uint64_t size)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_FSIZE, &limit) || size <= limit.rlim_cur;
}

static uint64_t align_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

/* A new region without a name, mapped from end to end. `promise`: MAP_NORESERVE or MUST_FIT.
 * Returns a descriptor of it or -errno. */
static int make_region(uint64_t length, int promise)
{
    const int flags = MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS | promise;
    const int rights = PROT_READ | PROT_WRITE | PROT_EXEC;
    const uint64_t step = quantum();
    const uint64_t pages = align_up(length, PAGE_SIZE), size = step ? align_up(length, step) : 0;
    char path[PATH_MAX];
    int fd, err = 0;

    if (!step)
        return errno ? -errno : -EINVAL;
    if (!may_size(size))
        return -EFBIG;
    fd = make_file(path);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size) || mshare_map(fd, 0, pages, rights, flags, -1, 0))
        err = -errno;
    unlink(path);
    if (err)
        sys_close(fd);
    return err ? err : fd;
}

/* The memory of a region, as a descriptor, or -errno; `why` is a sentence then, or empty. */
static int take_memory(int region, char why[MSG_TEXT])
{
    struct msg msg = {.op = MSG_ADOPT};
    int fds[MSG_FDS] = {-1, -1, -1};
    int sock = control_connect(region);
    int err = sock < 0 ? sock : control_call(sock, &msg, NULL, 0, fds);

    if (sock >= 0)
        sys_close(sock);
    if (err)
        memcpy(why, msg.text, MSG_TEXT);
    why[MSG_TEXT - 1] = 0;
    return err ? err : fds[0] < 0 ? -EPROTO : fds[0];
}

static int attach(int region, const struct mmap_call *call, void **got)
{
    const struct attach_request request = {
        .addr = call->addr,
        .length = call->length,
        .prot = call->prot,
        .flags = call->flags & ~MAP_ANONYMOUS,
        .way = ATTACH_ADOPTED,
    };

    return api_attach(region, &request, got);
}

/* What an error of ours means for whoever wanted the memory adopted. */
static const char *meaning(int err)
{
    switch (-err) {
    case ENOSPC:
        return "it does not fit where regions are (ENOSPC)";
    case EFBIG:
        return "no file may be as large (RLIMIT_FSIZE)";
    case ENOMEM:
        return "a process has 256 attachments at most, or there is no memory (ENOMEM)";
    default:
        return strerror(-err);
    }
}

/* The program works without it, but that is not what was asked for: say so, and keep it for the
 * report. */
static void complain(const void *place, uint64_t length, int err, const char *why)
{
    const char *reason = *why ? why : meaning(err);
    char text[512];
    int size = snprintf(text, sizeof text,
                        "msharefs: process %d: %llu bytes of shared memory stay plain: %s\n",
                        (int)getpid(), (unsigned long long)length, reason);

    if (place != MAP_FAILED)
        refused_note(place, length, reason);
    if (write(STDERR_FILENO, text, (size_t)size) < 0)
        return;
}

static bool replaces(const struct mmap_call *call)
{
    return call->flags & MAP_FIXED && !(call->flags & MAP_FIXED_NOREPLACE);
}

/* Puts the object over Linux's memory at `place`. Nobody has used that yet. */
static int map_over(void *place, const struct mmap_call *call, int memory)
{
    struct mmap_call over = *call;

    over.addr = place;
    over.flags = (call->flags & ~(MAP_ANONYMOUS | MAP_FIXED_NOREPLACE)) | MAP_FIXED;
    over.fd = memory;
    over.offset = 0; /* Linux ignores it */
    return preload_map_plain(&over) == MAP_FAILED ? -errno : 0;
}

/* Memory that stays plain was mapped without MAP_POPULATE. */
static void populate(void *place, const struct mmap_call *call)
{
    if (call->flags & MAP_POPULATE)
        sys_madvise(place, call->length, MADV_POPULATE_READ);
}

/* Whether it may be adopted, however large it is. */
static bool suited(const struct mmap_call *call)
{
    return call->length <= HOST_END && call->offset % (off_t)PAGE_SIZE == 0 &&
           (call->flags & MAP_TYPE) == MAP_SHARED && !(call->flags & (MAP_HUGETLB | MAP_GROWSDOWN));
}

/* Whether it may be an attachment. */
static bool watchable(const struct mmap_call *call)
{
    return !(call->flags & (MAP_LOCKED | MAP_32BIT)) && !(call->prot & PROT_EXEC);
}

bool adopt_wanted(const struct mmap_call *call)
{
    return (call->shared_pt || call->length >= least) && suited(call);
}

/* Whatever could be told apart stays: memory that may not be written or executed later, or that
 * begins elsewhere, past the end of the object. */
bool adopt_zero(const struct mmap_call *call)
{
    const int saved = errno;
    struct statvfs place;
    struct stat file;
    const bool wanted = call->shared_pt || tell_wanted(TELL_ZERO, call->length);
    const bool zero = wanted && suited(call) && !call->offset && !fstat(call->fd, &file) &&
                      S_ISCHR(file.st_mode) && file.st_rdev == makedev(1, 5) &&
                      (fcntl(call->fd, F_GETFL) & (O_ACCMODE | O_PATH)) == O_RDWR &&
                      !fstatvfs(call->fd, &place) && !(place.f_flag & ST_NOEXEC);

    errno = saved;
    return zero;
}

/* With a budget. */
static void *map_watched(const struct mmap_call *call, int region)
{
    void *got = MAP_FAILED;
    const bool may_be = watchable(call);
    const int err = region < 0 ? region : may_be ? attach(region, call, &got) : -EINVAL;
    const char *why = may_be ? "" : "with a budget, no locked, executable or 32-bit memory is";

    if (!err)
        return got;
    got = preload_map_plain(call);
    if (err != -EEXIST) /* that is Linux's answer too */
        complain(got, call->length, err, why);
    return got;
}

/* Puts a region's memory where `place` is, or where the call says. */
static void *map_memory(const struct mmap_call *call, void *place, int memory, const char *why)
{
    int err = memory < 0 ? memory : 0;

    if (replaces(call)) {
        sys_munmap(place, call->length);
        place = call->addr;
    }
    if (!err)
        err = map_over(place, call, memory);
    if (!err)
        return place;
    if (replaces(call))
        place = preload_map_plain(call);
    else
        populate(place, call);
    if (place != MAP_FAILED) /* that is Linux's answer, too */
        complain(place, call->length, err, why);
    return place;
}

void *adopt_map(const struct mmap_call *call)
{
    struct mmap_call plain = *call;
    char why[MSG_TEXT] = "";
    void *place = MAP_FAILED, *got;
    int region, memory;

    if (filter_given()) {
        complain(MAP_FAILED, call->length, 0, "the program has a seccomp filter");
        return preload_map_plain(call);
    }

    /* What is replaced may be in use until it is: Linux is asked elsewhere. */
    if (replaces(call)) {
        plain.addr = NULL;
        plain.flags &= ~MAP_FIXED;
    }
    plain.flags &= ~MAP_POPULATE;
    if (!budget && (place = preload_map_plain(&plain)) == MAP_FAILED)
        return replaces(call) ? preload_map_plain(call) : MAP_FAILED;
    /* Linux has said that there may be as much. */
    region = make_region(call->length, budget ? MUST_FIT : MAP_NORESERVE);
    memory = region < 0 || budget ? region : take_memory(region, why);
    if (budget || memory == -EOPNOTSUPP) { /* the mount has one */
        if (place != MAP_FAILED)
            sys_munmap(place, call->length);
        got = map_watched(call, region);
    } else {
        got = map_memory(call, place, memory, why);
        if (memory >= 0)
            sys_close(memory);
    }
    if (region >= 0)
        sys_close(region);
    return got;
}
