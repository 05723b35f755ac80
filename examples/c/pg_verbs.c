/*
 * PostgreSQL's shared buffers as a region of its own, with verbs on it (msharefs.h):
 *
 *   cc -shared -fPIC -o pg_verbs.so pg_verbs.c $(pkg-config --cflags --libs msharefs)
 *   LD_PRELOAD=./pg_verbs.so PG_REGION=/mnt/buffers PG_VERBS=populate,lock,seal postgres -D data ...
 *
 * populate: all buffers and their page tables are there before the first query; lock: they stay in
 * memory; seal: no process of the server can unmap them, or protect them otherwise.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <err.h>
#include <fcntl.h>
#include <msharefs.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *buffers(const char *path, size_t length)
{
    const char *verbs = getenv("PG_VERBS") ? getenv("PG_VERBS") : "";
    const int shared = MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, rw = PROT_READ | PROT_WRITE;
    const int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    struct mshare_stat region;
    void *memory = MAP_FAILED;

    if (fd >= 0 && !mshare_stat(fd, &region, sizeof region) &&
        !ftruncate(fd, (off_t)((length / region.quantum + 1) * region.quantum)) &&
        !mshare_map(fd, 0, length, rw, shared, -1, 0) &&
        !(strstr(verbs, "populate") && mshare_advise(fd, 0, length, MADV_POPULATE_WRITE)) &&
        !(strstr(verbs, "lock") && mshare_lock(fd, 0, length, 0)) &&
        !(strstr(verbs, "seal") && mshare_seal(fd, 0, length)))
        memory = mshare_attach(fd, 0, 0, NULL, 0);
    if (memory == MAP_FAILED)
        err(1, "%s", path);
    close(fd);
    return memory;
}

void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    static void *(*next)(void *, size_t, int, int, int, off_t);
    const char *path = getenv("PG_REGION");

    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "mmap");
    if (path && length >= 1 << 20 && flags & MAP_SHARED && flags & MAP_ANONYMOUS && !addr)
        return buffers(path, length);
    return next(addr, length, prot, flags, fd, offset);
}

/* The name that programs call which were built for files of any size. */
void *mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));
