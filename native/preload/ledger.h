/*
 * ledger.h - mappings whose page tables Android's kernel would share, and what unshared them.
 *
 * Linux shares none of them: a ledger says which it would. It is private memory of a memfd with a
 * name of its own, so that a child of fork(2) has a copy, as it would have the links to the shared
 * tables; whoever counts them (msharefs/lab/shared_pt.py) finds it in /proc/PID/maps and reads it
 * there. Ranges are tables, of 2 MiB each.
 */
#ifndef MSHARE_PRELOAD_LEDGER_H
#define MSHARE_PRELOAD_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Why a process has a table of its own where it shared one. */
enum ledger_cause {
    LEDGER_SHARED,
    LEDGER_MPROTECT,
    LEDGER_MREMAP,
    LEDGER_MUNMAP, /* of a part of a table; or something else was mapped there */
    LEDGER_MADVISE,
};

/* Tables of a new mapping, [start, end), are shared with whoever inherits it. 0 or -errno. */
int ledger_add(uint64_t start, uint64_t end);
/* Whether any of these addresses is in a mapping that was added. */
bool ledger_has(const void *addr, size_t length);
/* Linux has changed memory there: the tables with a part of it are the process's own from now on.
 * With LEDGER_MUNMAP, those that lay in it from end to end are gone. */
void ledger_changed(const void *addr, size_t length, enum ledger_cause cause);
/* mremap(2) has moved it, or `old_size` has become `new_size` in place; `kept`: not only moved. */
void ledger_moved(const void *old, size_t old_size, const void *got, size_t new_size, bool kept);

#endif
