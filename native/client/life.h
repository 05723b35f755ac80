/*
 * life.h - a shadow comes to life.
 */
#ifndef MSHARE_LIFE_H
#define MSHARE_LIFE_H

#include <errno.h>

#include "client/attachment.h"

/* Makes the shadow of an attachment, and gives it all descriptors; the program has none of them
 * afterwards. 0 or -errno; then the program still has them. Precondition: the table's lock held,
 * and nobody knows of `att` yet. */
int life_start(struct attachment *att);
#define LIFE_NO_WINDOW (-ENXIO)
/* In a child of fork(2): makes the shadow of an attachment that the child has inherited. It
 * makes the window ready, too. `plain`: there is nothing but .mem in it. 0 or -errno;
 * LIFE_NO_WINDOW: the child has no window; -ECHILD: whoever made it was killed. Precondition: both
 * locks held. */
int life_inherit(struct attachment *att, bool plain);

#endif
