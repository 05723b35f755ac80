/* A user's program: compiled with what the wheel holds, it calls every function of the library
 * once. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <msharefs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int failures;

static void expect(const char *call, int ok)
{
    printf("%s: %s (%s)\n", call, ok ? "ok" : "WRONG", strerror(errno));
    failures += !ok;
    errno = 0;
}

/* Calls on a descriptor that is no region must fail, and leave the process as it was. */
int main(void)
{
    struct mshare_stat st;
    int fd = open("/dev/null", O_RDWR);

    _Static_assert(MSHAREFS_CREATE_MAPPING == 0x40287800, "as in the kernel's header");
    _Static_assert(MSHAREFS_UNMAP == 0x40107801, "as in the kernel's header");
    expect("mshare_attach",
           mshare_attach(fd, NULL, PROT_READ, MAP_SHARED) == MAP_FAILED && errno != 0);
    expect("mshare_detach", mshare_detach(&st) == -1 && errno == EINVAL);
    expect("mshare_map", mshare_map(fd, 0, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
                                    -1, 0) == -1 &&
                             errno != 0);
    expect("mshare_unmap", mshare_unmap(fd, 0, 4096) == -1 && errno != 0);
    expect("mshare_stat", mshare_stat(fd, &st) == -1 && errno != 0);
    return failures != 0;
}
