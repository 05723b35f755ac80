/* trap.c - see trap.h. */
#define _GNU_SOURCE
#include "trap.h"

#include <signal.h>
#include <stddef.h>

_Thread_local struct trap *trap_current;
bool (*volatile trap_repair)(uintptr_t addr);

static void caught(int signo, siginfo_t *info, void *context)
{
    struct trap *trap = trap_current;

    (void)context;
    if (trap_repair && trap_repair((uintptr_t)info->si_addr))
        return;
    if (!trap) {
        signal(signo, SIG_DFL); /* the access is made again, and kills */
        return;
    }
    trap->signo = signo;
    trap->code = info->si_code;
    trap->addr = (uintptr_t)info->si_addr;
    siglongjmp(trap->env, 1);
}

void trap_install(void)
{
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER};

    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}
