/* clock.c - CPU time without waiting; see clock.h. */
#include "client/clock.h"

#include "core/linger.h"

static uint64_t lingered_ns; /* used by the service thread alone */

void clock_add_lingered(uint64_t ns) { lingered_ns += ns; }

uint64_t clock_busy_ns(clockid_t clock) { return clock_ns(clock) - lingered_ns; }
