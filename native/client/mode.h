/*
 * mode.h - who is to take the faults of this process's attachments: for each a shadow (shadow.h),
 * or the service thread for all of them (service.h).
 */
#ifndef MSHARE_MODE_H
#define MSHARE_MODE_H

#include "client/attachment.h"

/* Decides by MSHAREFS_CLIENT, once for the process and its children; where that is not set, for a
 * shadow, but for the thread with MSHAREFS_DEBUG and where another library has replaced what a
 * shadow calls, and for nobody under valgrind. 0; -EINVAL: it is neither "thread" nor "shadow".
 * Precondition: the table's lock held. */
int mode_choose(void);
/* What was decided. Precondition: mode_choose() has been called. */
enum served_by mode_of_next(void);
/* A shadow cannot be made here: from now on it is the thread.
 * Precondition: the table's lock held. */
void mode_thread(void);
/* Hides a descriptor that was a shadow's or was to be. Precondition: after mode_thread(). */
void mode_hide(int *fd);
/* On standard error, if MSHAREFS_VERBOSE is set (`msharefs run --verbose`): what is done instead,
 * and the errno, negative, that is the reason. Precondition: as mode_of_next(). */
void mode_tell(const char *what, int err);

#endif
