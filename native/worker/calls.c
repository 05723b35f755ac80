/* worker/calls.c - the commands that time a single system call. */
#define _GNU_SOURCE
#include "worker/calls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "msharefs.h"

static int answer(struct worker *w, const char *call, int result)
{
    return result < 0 ? fail(w, call, -errno) : 0;
}

int run_open(struct worker *w, const struct arguments *args)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = open(args->text, O_RDWR | O_CLOEXEC);
    return answer(w, "open", w->fd);
}

int run_create(struct worker *w, const struct arguments *args)
{
    return answer(w, "mshare_map",
                  mshare_map(w->fd, (off_t)args->number[0], args->number[1], PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, -1, 0));
}

int run_unmap(struct worker *w, const struct arguments *args)
{
    return answer(w, "mshare_unmap", mshare_unmap(w->fd, (off_t)args->number[0], args->number[1]));
}

int run_protect(struct worker *w, const struct arguments *args)
{
    bool write = !strcmp(args->text, "write");

    if (!write && strcmp(args->text, "read"))
        return fail(w, "protect: read or write", -EINVAL);
    return answer(w, "mshare_protect",
                  mshare_protect(w->fd, (off_t)args->number[0], args->number[1],
                                 write ? PROT_READ | PROT_WRITE : PROT_READ));
}

int run_punch(struct worker *w, const struct arguments *args)
{
    return answer(w, "fallocate",
                  fallocate(w->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                            (off_t)args->number[0], (off_t)args->number[1]));
}

int run_make(struct worker *w, const struct arguments *args)
{
    int fd = open(args->text, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    return answer(w, "open", fd < 0 ? fd : close(fd));
}

int run_stat(struct worker *w, const struct arguments *args)
{
    struct stat st;

    return answer(w, "stat", stat(args->text, &st));
}

int run_rename(struct worker *w, const struct arguments *args)
{
    char other[4096];

    snprintf(other, sizeof other, "%s.renamed", args->text);
    int err = answer(w, "rename", rename(args->text, other));
    return err ? err : answer(w, "rename", rename(other, args->text));
}

int run_remove(struct worker *w, const struct arguments *args)
{
    return answer(w, "unlink", unlink(args->text));
}
