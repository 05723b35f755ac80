/*
 * clock.h - CPU time, without the time spent on staying awake for the next event
 * (core/linger.h), which is our choice and says nothing about the amount of work.
 */
#ifndef MSHARE_CLOCK_H
#define MSHARE_CLOCK_H

#include "client/attachment.h"

/* The service thread has spent so many ns of CPU time on staying awake for events.
 * Precondition: on the service thread. */
void clock_add_lingered(uint64_t ns);
/* CPU time in ns, of the program without us. Precondition: on the service thread, or in the
 * shadow of `att`. */
uint64_t clock_program_ns(const struct attachment *att);
/* Our own, without that. Precondition: the same. */
uint64_t clock_own_ns(const struct attachment *att);

#endif
