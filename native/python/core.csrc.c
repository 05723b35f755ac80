/* The headers that the Python extension is compiled with; see core.cdef.txt. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "client/window.h"
#include "core/audit.h"
#include "core/control.h"
#include "core/fault.h"
#include "core/frames.h"
#include "core/mm.h"
#include "core/protocol.h"
#include "core/slots.h"
#include "core/touched.h"
#include "core/vma.h"
#include "msharefs.h"
#include "server/guard.h"
#include "server/hostmm.h"
#include "server/identity.h"
#include "server/inspect.h"
#include "server/prefill.h"
