/*
 * preload/refused.c - why memory was not adopted, for who reads it from outside: refused.h.
 *
 * No lock: a signal handler may map memory, too. A record is there once its end is.
 */
#define _GNU_SOURCE
#include "preload/refused.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "preload/filter.h"
#include "preload/sys.h"

#define RECORDS_MAX 63u

struct record {
    uint64_t start;
    _Atomic uint64_t end; /* 0: it is being written */
    char why[112];
};

/* msharefs/lab/refused.py has this, too. */
struct refused {
    char magic[8];
    _Atomic uint32_t count; /* so many were wanted: there may be fewer */
    char unused[116];
    struct record records[RECORDS_MAX];
};

static const char magic[8] = "REFUSED";
static _Atomic(struct refused *) refused;

static struct refused *make(void)
{
    struct refused *new, *other = NULL;
    const int fd = memfd_create("msharefs-refused", MFD_CLOEXEC);

    if (fd < 0)
        return NULL;
    new = ftruncate(fd, sizeof *new)
              ? MAP_FAILED
              : sys_mmap(NULL, sizeof *new, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    sys_close(fd);
    if (new == MAP_FAILED)
        return NULL;
    memcpy(new->magic, magic, sizeof magic);
    if (atomic_compare_exchange_strong(&refused, &other, new))
        return new;
    sys_munmap(new, sizeof *new);
    return other;
}

void refused_note(const void *addr, uint64_t length, const char *why)
{
    const int saved = errno;
    struct refused *kept = atomic_load(&refused);
    struct record *record;
    uint32_t number;

    if (filter_given()) /* the report sees that, and a filter may permit none of these calls */
        return;
    if (!kept)
        kept = make();
    errno = saved;
    if (!kept || (number = atomic_fetch_add(&kept->count, 1)) >= RECORDS_MAX)
        return;
    record = &kept->records[number];
    record->start = (uintptr_t)addr;
    strncpy(record->why, why, sizeof record->why - 1);
    atomic_store(&record->end, record->start + length);
}
