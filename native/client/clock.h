/*
 * clock.h - CPU time, without the time spent on staying awake for the next event
 * (core/linger.h), which is our choice and says nothing about the amount of work.
 */
#ifndef MSHARE_CLOCK_H
#define MSHARE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* The service thread has spent so many ns of CPU time on staying awake for events.
 * Precondition: on the service thread. */
void clock_add_lingered(uint64_t ns);
/* CPU time in ns, of CLOCK_THREAD_CPUTIME_ID or CLOCK_PROCESS_CPUTIME_ID, without that.
 * Precondition: on the service thread. */
uint64_t clock_busy_ns(clockid_t clock);

#endif
