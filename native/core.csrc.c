/* What the Python extension compiles against; see core.cdef.txt. */
#include <sys/syscall.h>
#include <unistd.h>

#include "control.h"
#include "fault.h"
#include "hostmm.h"
#include "inspect.h"
#include "prefill.h"
#include "mm.h"
#include "msharefs.h"
#include "protocol.h"
#include "touched.h"
#include "window.h"
