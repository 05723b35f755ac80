/* preload/shared_pt.c - MAP_SHARED_PT: see shared_pt.h. */
#define _GNU_SOURCE
#include "preload/shared_pt.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/layout.h"
#include "preload/ledger.h"
#include "preload/mounts.h"
#include "preload/sys.h"

static int flag;     /* its value; 0: there is none */
static bool android; /* whose rules */

/* As "android:0x40000". */
__attribute__((constructor)) static void read_environment(void)
{
    const char *text = getenv("MSHAREFS_SHARED_PT"), *value = text ? strchr(text, ':') : NULL;

    if (!value)
        return;
    android = !strncmp(text, "android:", strlen("android:"));
    flag = (int)strtoul(value + 1, NULL, 0);
}

static void *refuse(int err)
{
    errno = err;
    return MAP_FAILED;
}

/* Source: the tests of Android's kernel for it, which are public; overlaps: ours. */
static bool android_refuses(const struct mmap_call *call)
{
    const int type = call->flags & MAP_TYPE;
    const bool shared = type == MAP_SHARED || type == MAP_SHARED_VALIDATE;

    return call->flags & MAP_ANONYMOUS || !(call->flags & MAP_FIXED) || !call->length ||
           (uintptr_t)call->addr % PMD_SIZE || call->length % PMD_SIZE ||
           (!shared && type != MAP_PRIVATE) || (call->prot & PROT_WRITE && !shared) ||
           preload_may_be_region(call->fd);
}

static void *map_android(struct mmap_call call)
{
    void *got = MAP_FAILED;
    int err;

    /* Linux knows that value, too: a file of huge pages is mapped, all others are EINVAL. */
    if (flag == MAP_HUGETLB)
        got = preload_map_plain(&call);
    if (got != MAP_FAILED)
        return got;
    call.flags &= ~flag;
    if (android_refuses(&call))
        return refuse(EINVAL);
    call.flags |= MAP_FIXED_NOREPLACE;
    got = preload_map_plain(&call);
    if (got == MAP_FAILED)
        return refuse(errno == EEXIST ? EINVAL : errno);
    err = ledger_add((uintptr_t)got, (uintptr_t)got + call.length);
    if (!err)
        return got;
    sys_munmap(got, call.length);
    return refuse(-err);
}

bool shared_pt_take(struct mmap_call *call, void **got)
{
    const int type = call->flags & MAP_TYPE;

    /* Android's value is MAP_HUGETLB, which goes on to mean huge pages for anonymous memory. */
    if (!flag || !(call->flags & flag) || (flag == MAP_HUGETLB && call->flags & MAP_ANONYMOUS))
        return false;
    if (android) {
        *got = map_android(*call);
        return true;
    }
    call->flags &= ~flag;
    call->shared_pt = true;
    if (type == MAP_SHARED || type == MAP_SHARED_VALIDATE)
        return false;
    *got = refuse(EINVAL); /* the series and its predecessors share no private memory */
    return true;
}
