/*
 * tell.h - memory that Linux makes for the program, and that the mount's server is told of.
 *
 * `msharefs run --adopt` asks for it, class by class, from a size on. Nothing changes for the
 * program: the server looks at the object from outside (msharefs/server/existing.py).
 */
#ifndef MSHARE_PRELOAD_TELL_H
#define MSHARE_PRELOAD_TELL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "preload/mapping.h"

enum tell_class { TELL_ZERO, TELL_SYSV, TELL_MEMFD, TELL_SHM, TELL_FILE, TELL_CLASSES };

/* Whether the server is to know of memory of that class and size, in bytes. */
bool tell_wanted(enum tell_class what, uint64_t length);
/* The program has mapped an object at [addr, addr + length), from `offset` on, and the server is
 * to know of it. */
void tell_mapped(enum tell_class what, const void *addr, uint64_t length, uint64_t offset);
/* It has mapped a file, at `addr`; whether the server is to know is looked up here. */
void tell_file(const struct mmap_call *call, const void *addr);

#endif
