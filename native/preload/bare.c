/*
 * preload/bare.c - _Fork(3) and clone(2): children that run no handlers of fork(3), and yet have a
 * copy of everything. Their windows keep their rights (client/bare.h). One that shares its
 * parent's memory shares the windows as well, and is left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdarg.h>
#include <unistd.h>

#include "client/bare.h"
#include "msharefs.h"

typedef pid_t fork_function(void);
typedef int clone_function(int (*)(void *), void *, int, void *, ...);

static fork_function *next_fork;
static clone_function *next_clone;

/* Early, for _Fork(3) may be called in a signal handler, and dlsym(3) not. */
__attribute__((constructor)) static void find_next(void)
{
    *(void **)&next_fork = dlsym(RTLD_NEXT, "_Fork");
    *(void **)&next_clone = dlsym(RTLD_NEXT, "clone");
}

MSHARE_API pid_t _Fork(void)
{
    if (!next_fork) /* another library's constructor calls us */
        find_next();
    const pid_t pid = next_fork();

    if (!pid)
        bare_begin();
    return pid;
}

struct start {
    int (*function)(void *);
    void *arg;
};

static int begin(void *arg)
{
    const struct start start = *(struct start *)arg;

    bare_begin();
    return start.function(start.arg);
}

MSHARE_API int clone(int (*function)(void *), void *stack, int flags, void *arg, ...)
{
    struct start start = {function, arg}; /* the child has a copy */
    void *more[3];
    va_list list;

    va_start(list, arg);
    for (unsigned i = 0; i < 3; i++)
        more[i] = va_arg(list, void *);
    va_end(list);
    if (!next_clone)
        find_next();
    if (flags & CLONE_VM || !function)
        return next_clone(function, stack, flags, arg, more[0], more[1], more[2]);
    return next_clone(begin, stack, flags, &start, more[0], more[1], more[2]);
}
