/* mode.c - thread or shadow; see mode.h. */
#define _GNU_SOURCE
#include "client/mode.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/attachments.h"
#include "core/control.h"
#include "core/hidden.h"

static bool chosen, verbose;
static enum served_by mode = BY_THREAD;

/* Under valgrind only one thread runs at a time, also while it is in a fault; and clone(2) as for a
 * shadow ends the process. */
static bool under_valgrind(void)
{
    const char *preload = getenv("LD_PRELOAD");

    return preload && strstr(preload, "/vgpreload_");
}

int mode_choose(void)
{
    const char *asked = getenv("MSHAREFS_CLIENT");

    if (chosen)
        return 0;
    if (!asked || !*asked)
        mode = under_valgrind() ? BY_NOBODY : BY_THREAD;
    else if (!strcmp(asked, "shadow"))
        mode = BY_SHADOW;
    else if (strcmp(asked, "thread") != 0)
        return -EINVAL;
    verbose = getenv("MSHAREFS_VERBOSE");
    if (mode != BY_THREAD) /* the program has none of ours */
        hidden_none(true);
    chosen = true;
    return 0;
}

enum served_by mode_of_next(void) { return mode; }

void mode_tell(const char *what, int err)
{
    const char *why = strerrordesc_np(-err);
    char text[256];
    int size;

    if (!verbose)
        return;
    size = snprintf(text, sizeof text, "msharefs: process %d: %s (%s)\n", (int)getpid(), what,
                    why ? why : "unknown");
    (void)!write(STDERR_FILENO, text, (size_t)size);
}

void mode_thread(void)
{
    bool any = false;

    mode = BY_THREAD;
    for (unsigned i = 0; i < attachments_used; i++)
        any = any || (attachments[i].live && has_shadow(&attachments[i]));
    /* The numbers of a shadow's descriptors are in a table of its own. */
    hidden_none(any);
}

void mode_hide(int *fd)
{
    const int hidden = *fd < 0 ? *fd : control_hide_fd(*fd);

    if (hidden >= 0) /* otherwise it keeps its number */
        *fd = hidden;
}
