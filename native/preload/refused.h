/*
 * refused.h - why memory that `msharefs run --adopt` asks for was not adopted, mapping by mapping.
 *
 * Standard error has it, too, but nobody reads that for the report. So it is kept in private memory
 * of a memfd with a name of its own, from the first refusal on: whoever writes the report
 * (msharefs/lab/refused.py) finds it in /proc/PID/maps and reads it there.
 */
#ifndef MSHARE_PRELOAD_REFUSED_H
#define MSHARE_PRELOAD_REFUSED_H

#include <stdint.h>

/* The memory at `addr` stays what it is. Only so many mappings are kept. */
void refused_note(const void *addr, uint64_t length, const char *why);

#endif
