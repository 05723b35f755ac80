#include "fuse_hook.h"
#include "fuse_passthrough.h"
