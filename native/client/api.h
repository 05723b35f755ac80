/*
 * api.h - the way into the client, for the public calls (msharefs.h) and for the preload
 * library.
 */
#ifndef MSHARE_API_H
#define MSHARE_API_H

#include "client/check.h"

/* As mshare_attach(), with the window's address in *base. 0 or -errno. -ENOTTY: `fd` is not
 * a region. Precondition: no att->lock held. */
int api_attach(int fd, const struct attach_request *request, void **base);

#endif
