/*
 * preload/filter.c - prctl(2) and seccomp(2): see filter.h. A filter that the program was started
 * under is no concern: the dynamic linker has made such calls as ours by then.
 */
#define _GNU_SOURCE
#include "preload/filter.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "msharefs.h"
#include "preload/sys.h"

static _Atomic bool given;

bool filter_given(void) { return atomic_load(&given); }

void filter_see(long number, long first)
{
    if (number == SYS_seccomp || (number == SYS_prctl && first == PR_SET_SECCOMP))
        atomic_store(&given, true);
}

MSHARE_API int prctl(int option, ...)
{
    long arguments[4];
    va_list list;

    va_start(list, option);
    for (unsigned i = 0; i < 4; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    filter_see(SYS_prctl, option);
    return (int)sys_syscall(SYS_prctl, option, arguments[0], arguments[1], arguments[2],
                            arguments[3], 0);
}
