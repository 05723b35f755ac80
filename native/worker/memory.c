/* worker/memory.c - getting the memory of a benchmark, and letting go of it. */
#define _GNU_SOURCE
#include "worker/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "msharefs.h"

/* The region stays attached, and the file mapped, without its descriptor. */
static int open_file(struct worker *w, const char *path, uint64_t *size)
{
    struct stat st;

    if (w->backend != NOTHING)
        return fail(w, "something is attached already", -EBUSY);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return fail(w, "open", -errno);
    if (fstat(fd, &st)) {
        int err = -errno;
        close(fd);
        return fail(w, "fstat", err);
    }
    *size = (uint64_t)st.st_size;
    return fd;
}

static int hold(struct worker *w, enum backend backend, void *memory, uint64_t bytes,
                const char *call)
{
    if (memory == MAP_FAILED) /* which is shmat's (void *)-1 too */
        return fail(w, call, -errno);
    w->backend = backend;
    w->memory = memory;
    w->bytes = bytes;
    w->value = (int64_t)(uintptr_t)memory;
    return 0;
}

int run_attach(struct worker *w, const struct arguments *args)
{
    uint64_t size;
    int fd = open_file(w, args->text, &size);

    if (fd < 0)
        return fd;
    void *memory = mshare_attach(fd, 0, 0, NULL, 0);
    int err = hold(w, REGION, memory, size, "mshare_attach");
    close(fd);
    return err;
}

int run_map(struct worker *w, const struct arguments *args)
{
    uint64_t bytes = args->number[0], size;
    int fd = open_file(w, args->text, &size);

    if (fd < 0)
        return fd;
    if (!bytes)
        bytes = size;
    int err = bytes > size ? fail(w, "map: more than the file has", -EINVAL) : 0;
    if (!err) {
        void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        err = hold(w, PLAIN, memory, bytes, "mmap");
    }
    close(fd);
    return err;
}

int run_shm(struct worker *w, const struct arguments *args)
{
    if (w->backend != NOTHING)
        return fail(w, "something is attached already", -EBUSY);
    return hold(w, SYSV, shmat((int)args->number[1], NULL, 0), args->number[0], "shmat");
}

int run_detach(struct worker *w, const struct arguments *args)
{
    int failed = 0;

    (void)args;
    switch (w->backend) {
    case NOTHING:
        return fail(w, "nothing is attached", -EINVAL);
    case REGION:
        failed = mshare_detach(w->memory);
        break;
    case PLAIN:
        failed = munmap(w->memory, w->bytes);
        break;
    case SYSV:
        failed = shmdt(w->memory);
        break;
    }
    if (failed)
        return fail(w, "detach", -errno);
    w->backend = NOTHING;
    return 0;
}

int run_hugepages(struct worker *w, const struct arguments *args)
{
    (void)args;
    if (w->backend != PLAIN)
        return fail(w, "hugepages: nothing is mapped", -EINVAL);
    return madvise(w->memory, w->bytes, MADV_HUGEPAGE) ? fail(w, "madvise", -errno) : 0;
}

int run_mprotect(struct worker *w, const struct arguments *args)
{
    bool write = !strcmp(args->text, "write");

    if (w->backend == NOTHING || (!write && strcmp(args->text, "read")))
        return fail(w, "mprotect: read or write what is mapped", -EINVAL);
    if (mprotect(w->memory, w->bytes, write ? PROT_READ | PROT_WRITE : PROT_READ))
        return fail(w, "mprotect", -errno);
    return 0;
}

/* The system call is for those who may not open the device: it needs a sysctl, or a privilege. */
int run_watch(struct worker *w, const struct arguments *args)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
    struct uffdio_register range = {
        .range = {(uintptr_t)w->memory, w->bytes},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

    (void)args;
    int uffd = device < 0 ? (int)syscall(SYS_userfaultfd, (long)(O_CLOEXEC | O_NONBLOCK))
                          : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    int err = uffd < 0 ? fail(w, "a userfaultfd", -errno) : 0;
    if (device >= 0)
        close(device);
    if (!err && ioctl(uffd, UFFDIO_API, &api))
        err = fail(w, "UFFDIO_API", -errno);
    if (!err && ioctl(uffd, UFFDIO_REGISTER, &range))
        err = fail(w, "UFFDIO_REGISTER", -errno);
    if (err && uffd >= 0)
        close(uffd);
    w->value = err ? -1 : uffd;
    return err;
}
