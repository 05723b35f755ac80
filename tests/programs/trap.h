/* trap.h - try a memory access: a signal comes back as a value, in the thread that made the access.

    struct trap trap;
    if (TRY(trap))
        *byte = 1;
    else
        trap.signo, trap.code and trap.addr describe the signal
*/
#ifndef TRAP_H
#define TRAP_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

struct trap {
    sigjmp_buf env;
    int signo, code;
    uintptr_t addr;
};

extern _Thread_local struct trap *trap_current;

/* The handler does not block its signal, so there is no mask to restore. */
#define TRY(trap) (trap_current = &(trap), sigsetjmp((trap).env, 0) == 0)

/* Catches SIGSEGV and SIGBUS from now on. Outside of TRY they kill as they always do. */
void trap_install(void);

/* Called in the handler before anything else: true to return to the access and make it again. */
extern bool (*volatile trap_repair)(uintptr_t addr);

#endif
