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
    unsigned char byte;
    int fd = open("/dev/null", O_RDWR);

    _Static_assert(MSHAREFS_CREATE_MAPPING == 0x40287800, "as in the kernel's header");
    _Static_assert(MSHAREFS_UNMAP == 0x40107801, "as in the kernel's header");
    expect("mshare_attach", mshare_attach(fd, 0, 0, NULL, 0) == MAP_FAILED && errno != 0);
    expect("mshare_detach", mshare_detach(&st) == -1 && errno == EINVAL);
    expect("mshare_map", mshare_map(fd, 0, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED,
                                    -1, 0) == -1 &&
                             errno != 0);
    expect("mshare_unmap", mshare_unmap(fd, 0, 4096) == -1 && errno != 0);
    expect("mshare_stat", mshare_stat(fd, &st, sizeof st) == -1 && errno != 0);
    expect("mshare_protect", mshare_protect(fd, 0, 4096, PROT_READ) == -1 && errno != 0);
    expect("mshare_advise", mshare_advise(fd, 0, 4096, MADV_DONTNEED) == -1 && errno != 0);
    expect("mshare_lock", mshare_lock(fd, 0, 4096, 0) == -1 && errno != 0);
    expect("mshare_unlock", mshare_unlock(fd, 0, 4096) == -1 && errno != 0);
    expect("mshare_mbind", mshare_mbind(fd, 0, 4096, 0, NULL, 0, 0) == -1 && errno != 0);
    expect("mshare_sync", mshare_sync(fd, 0, 4096, MS_SYNC) == -1 && errno != 0);
    expect("mshare_query", mshare_query(fd, 0, 4096, &byte) == -1 && errno != 0);
    expect("mshare_seal", mshare_seal(fd, 0, 4096) == -1 && errno != 0);
    expect("mshare_version", mshare_version()[0] >= '0');
    return failures != 0;
}
