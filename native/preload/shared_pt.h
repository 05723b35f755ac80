/*
 * shared_pt.h - MAP_SHARED_PT, a flag of mmap(2) that was proposed twice, and is in no kernel:
 * page tables of such a mapping are to be shared with the processes that inherit it.
 *
 * `msharefs run --shared-pt` says which value the flag has for the program, and whose rules hold:
 * "region", where the memory becomes a region as adopted memory does; or "android", where Linux
 * maps it and a ledger has which tables Android's kernel would share.
 */
#ifndef MSHARE_PRELOAD_SHARED_PT_H
#define MSHARE_PRELOAD_SHARED_PT_H

#include <stdbool.h>

#include "preload/mapping.h"

/* Takes the flag off a call that has it. True: the call is done, and `got` is its result. */
bool shared_pt_take(struct mmap_call *call, void **got);

#endif
