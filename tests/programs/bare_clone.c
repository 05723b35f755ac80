/*
 * bare_clone.c - a child that fork(3) does not know of: it has its parent's memory and copies of
 * its descriptors, but no fork handler has run. Its actions must not reach its parent, nor wait for
 * threads that it does not have: another thread of the parent takes every lock all the time.
 *
 *   bare_clone FILE    FILE: a region of two pages at least, mapped
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 50

static atomic_bool enough;

/* Each load is a fault, each madvise(2) changes the window. */
static void *fault(void *base)
{
    while (!enough) {
        (void)*(volatile char *)base;
        madvise(base, 4096, MADV_DONTNEED);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct stat status;
    int fd = argc == 2 ? open(argv[1], O_RDWR) : -1, code;

    if (fd < 0 || fstat(fd, &status))
        return 2;
    volatile char *base = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                               0);
    if (base == MAP_FAILED)
        return 3;
    base[0] = 1;
    pthread_t thread;
    if (pthread_create(&thread, NULL, fault, (void *)base))
        return 4;
    for (unsigned i = 0; i < CHILDREN; i++) {
        pid_t child = _Fork();
        if (!child)
            _exit(munmap((void *)base, (size_t)status.st_size) ? 4 : 0);
        if (waitpid(child, &code, 0) != child || code)
            return 5;
    }
    enough = true;
    pthread_join(thread, NULL);
    base[4096] = 2; /* a page that nobody has touched: a fault for us to answer */
    printf("%d %d\n", base[0], base[4096]);
    fflush(stdout);
    getchar(); /* meanwhile the test looks at the attached processes */
    return 0;
}
