#include "fuse/fuse_hook.h"
#include "fuse/fuse_passthrough.h"
