/*
 * preload/table.c - the mount table, as fopen(3) and setmntent(3) show it: the type of a mount of
 * ours is "msharefs", as in the series, and not "fuse.msharefs".
 *
 * The program gets Linux's file, whose descriptor is changed for one with a copy of the text as it
 * was at that moment. open(2) shows Linux's text: whoever has opened the table so can poll(2) it
 * for changes, and a copy has none.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <mntent.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "msharefs.h"
#include "preload/filter.h"
#include "preload/sys.h"

#define FUSE "fuse."
#define TYPE "msharefs"

typedef FILE *open_function(const char *, const char *);

/* The C library's function of a name, or that of a library between it and us. */
static open_function *next(const char *name, open_function *_Atomic *found)
{
    open_function *function = atomic_load_explicit(found, memory_order_relaxed);

    if (!function) {
        *(void **)&function = dlsym(RTLD_NEXT, name);
        atomic_store_explicit(found, function, memory_order_relaxed);
    }
    return function;
}

/* /etc/mtab is where setmntent(3)'s MOUNTED leads, a link to one of the others. */
static bool is_table(const char *path)
{
    static const char *const tables[] = {"/proc/mounts", "/proc/self/mounts",
                                         "/proc/self/mountinfo", "/etc/mtab"};

    for (unsigned i = 0; i < sizeof tables / sizeof *tables; i++)
        if (!strcmp(path, tables[i]))
            return true;
    return false;
}

/* Writes a line with the type changed if it is ours. No other field before the type can be this
 * word: a mount's root and place are paths. */
static bool write_line(FILE *to, const char *line, size_t length)
{
    const char *type = strstr(line, " " FUSE TYPE " ");
    const size_t before = type ? (size_t)(type - line) + 1 : length;

    fwrite(line, 1, before, to);
    if (type)
        fwrite(type + 1 + strlen(FUSE), 1, length - before - strlen(FUSE), to);
    return type;
}

/* A file with the text of `from` as it is to be shown, at its beginning; or -1: as it is. */
static int copy(FILE *from)
{
    const int fd = memfd_create("mounts", MFD_CLOEXEC),
              back = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
    FILE *to = back < 0 ? NULL : fdopen(back, "w");
    bool changed = false, written = false;
    char *line = NULL;
    size_t room = 0;
    ssize_t length;

    while (to && (length = getline(&line, &room, from)) > 0)
        changed |= write_line(to, line, (size_t)length);
    free(line);
    if (to)
        written = !fclose(to) && !ferror(from);
    else if (back >= 0)
        close(back);
    if (changed && written && !lseek(fd, 0, SEEK_SET))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* What the program sees of a table that Linux has opened for it. */
static void show(FILE *file)
{
    const int saved = errno, fd = fileno(file), again = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    const bool keeps = fcntl(fd, F_GETFD) & FD_CLOEXEC;
    FILE *text = again < 0 ? NULL : fdopen(again, "r");
    struct statfs fs;
    int shown = -1;

    if (text && !sys_fstatfs(fd, &fs) && fs.f_type == PROC_SUPER_MAGIC)
        shown = copy(text);
    /* It has the same position. */
    if (shown < 0 || sys_dup3(shown, fd, keeps ? O_CLOEXEC : 0) < 0)
        lseek(fd, 0, SEEK_SET);
    if (shown >= 0)
        close(shown);
    if (text)
        fclose(text);
    else if (again >= 0)
        close(again);
    errno = saved;
}

static FILE *open_table(open_function *function, const char *path, const char *mode)
{
    FILE *file = function(path, mode);

    if (file && !filter_given() && *mode == 'r' && is_table(path))
        show(file);
    return file;
}

MSHARE_API FILE *fopen(const char *path, const char *mode)
{
    static open_function *_Atomic found;

    return open_table(next("fopen", &found), path, mode);
}

MSHARE_API FILE *fopen64(const char *path, const char *mode)
{
    static open_function *_Atomic found;

    return open_table(next("fopen64", &found), path, mode);
}

/* The C library opens it past fopen(3). */
MSHARE_API FILE *setmntent(const char *path, const char *mode)
{
    static open_function *_Atomic found;

    return open_table(next("setmntent", &found), path, mode);
}
