/*
 * fd.h - a descriptor that may not be there.
 */
#ifndef MSHARE_FD_H
#define MSHARE_FD_H

#include <unistd.h>

/* Closes `fd` unless it is negative. */
static inline void fd_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

#endif
