/* create.h - mshare_create() and mshare_set_owner() (msharefs.h). */
#ifndef MSHARE_CREATE_H
#define MSHARE_CREATE_H

#include "msharefs.h"

#endif
