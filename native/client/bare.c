/*
 * bare.c - a child that fork(3) does not know of; see bare.h.
 *
 *   page of a window           after _Fork(3)                  after bare_begin()
 *   anybody may write          the region's, by Linux          the same
 *   read-only, PROT_NONE       as if anybody might write       refused
 *   a file, mapped by now      the file's                      the same
 *   a file, not yet            a page of .mem, with zeros      refused
 *   a hole                     a page of .mem, with zeros      the same, for it may be mapped later
 *
 * It gets no thread and no shadow: it may be the child of any thread, which may have had any lock
 * of the C library, and most such children call execve(2) at once.
 */
#define _GNU_SOURCE
#include "client/bare.h"

#include <errno.h>
#include <stdbool.h>

#include "client/attachments.h"
#include "client/detach.h"
#include "client/own.h"
#include "client/proc.h"
#include "client/watch.h"
#include "core/control.h"

static void restrict_all(void)
{
    for (unsigned i = 0; i < attachments_used; i++) {
        struct attachment *att = &attachments[i];

        if (att->live && !is_adopted(att) && att->served != BY_NOBODY)
            own_restrict(att);
    }
}

void bare_begin(void)
{
    if (!attachments_near(0, UINT64_MAX))
        return;
    attachments_lock();
    if (attachments_bare())
        restrict_all();
    attachments_unlock();
}

void bare_own(void)
{
    if (!attachments_bare())
        return;
    restrict_all(); /* nobody may have known of it before */
    for (unsigned i = 0; i < attachments_used; i++) {
        struct attachment *att = &attachments[i];

        if (att->asking) { /* another thread, of the parent */
            att->asking = false;
            control_finish(&att->ends, -ECANCELED);
        }
        if (!att->live)
            continue;
        if (has_shadow(att)) /* they are its shadow's */
            detach_forget(att);
        detach_unserved(att, false);
    }
    attachments_relock();
    proc_forked();
    watch_forget();
}
