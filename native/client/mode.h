/*
 * mode.h - who takes the faults of this process's attachments: the service thread (service.h), or
 * for each attachment a shadow (shadow.h).
 */
#ifndef MSHARE_MODE_H
#define MSHARE_MODE_H

#include <stdbool.h>

/* Decides by MSHAREFS_CLIENT, once for the process and its children. 0; -EINVAL: it is neither
 * "thread", which it is by default, nor "shadow". Precondition: the table's lock held. */
int mode_choose(void);
/* What was decided. Precondition: mode_choose() has been called. */
bool mode_is_shadow(void);

#endif
