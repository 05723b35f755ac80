#include "fuse_hook.h"
