/* clock.c - CPU time without waiting; see clock.h. */
#define _GNU_SOURCE
#include "client/clock.h"

#include <time.h>

#include "core/linger.h"

static uint64_t lingered_ns; /* used by the service thread alone */

void clock_add_lingered(uint64_t ns) { lingered_ns += ns; }

/* The clock of another process's CPU time, as clock_getcpuclockid(3) has it. */
static clockid_t clock_of(int pid) { return (clockid_t)(~(unsigned)pid << 3 | 2); }

uint64_t clock_program_ns(const struct attachment *att)
{
    struct timespec now = {0};

    if (!has_shadow(att))
        return clock_ns(CLOCK_PROCESS_CPUTIME_ID) - clock_ns(CLOCK_THREAD_CPUTIME_ID);
    clock_gettime(clock_of(att->shadow.program), &now); /* 0 once it has ended */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t clock_own_ns(const struct attachment *att)
{
    return clock_ns(CLOCK_THREAD_CPUTIME_ID) -
           (has_shadow(att) ? att->shadow.lingered_ns : lingered_ns);
}
