/* mode.c - thread or shadow; see mode.h. */
#include "client/mode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/hidden.h"

static bool chosen, shadow;

int mode_choose(void)
{
    const char *asked = getenv("MSHAREFS_CLIENT");

    if (chosen)
        return 0;
    if (asked && !strcmp(asked, "shadow"))
        shadow = true;
    else if (asked && *asked && strcmp(asked, "thread") != 0)
        return -EINVAL;
    if (shadow) /* the program has none of ours */
        hidden_none();
    chosen = true;
    return 0;
}

bool mode_is_shadow(void) { return shadow; }
