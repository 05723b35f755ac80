/*
 * storm.c - threads that change their address space at will, all at the same time, in a process
 * that also maps regions. Uses only the kernel's calls.
 *
 *   storm FILE ROUNDS    FILE: a region, sized and mapped from end to end, or any other file
 *
 * Says "done" when every thread has finished its rounds and has seen what it should.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define CHECK(what)                                            \
    do {                                                       \
        if (!(what)) {                                         \
            fprintf(stderr, "line %d: %s\n", __LINE__, #what); \
            abort();                                           \
        }                                                      \
    } while (0)

static const char *file;
static unsigned rounds;
static size_t size;
static volatile char *kept; /* an attachment that stays */

static char *attach(void)
{
    int fd = open(file, O_RDWR | O_CLOEXEC);

    CHECK(fd >= 0);
    char *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(base != MAP_FAILED);
    CHECK(!close(fd));
    return base;
}

/* Attachments that come and go; a value stored through one is there through the next. */
static void *attacher(void *arg)
{
    size_t page = 1 + (size_t)(uintptr_t)arg;

    for (unsigned i = 0; i < rounds; i++) {
        char *base = attach();

        base[page * PAGE] = (char)i;
        CHECK(kept[page * PAGE] == (char)i);
        CHECK(!munmap(base, size));
    }
    return NULL;
}

/* Children that use the attachment that stays, and then end. */
static void *forker(void *arg)
{
    size_t page = 1 + (size_t)(uintptr_t)arg;
    int status;

    for (unsigned i = 0; i < rounds; i++) {
        pid_t child = fork();

        CHECK(child >= 0);
        if (!child) {
            kept[page * PAGE] = (char)i;
            _exit(kept[0] == 42 ? 0 : 1);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(!status);
        CHECK(kept[page * PAGE] == (char)i);
    }
    return NULL;
}

/* Memory of its own, made, protected, moved and unmapped between the windows. */
static void *mapper(void *unused)
{
    (void)unused;
    for (unsigned i = 0; i < 20 * rounds; i++) {
        size_t length = (1 + i % 64) * PAGE;
        char *own = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        CHECK(own != MAP_FAILED);
        own[length - 1] = 1;
        CHECK(!mprotect(own, length, PROT_READ));
        CHECK(!madvise(own, length, MADV_DONTNEED));
        CHECK(own[length - 1] == 0);
        own = mremap(own, length, 2 * length, MREMAP_MAYMOVE);
        CHECK(own != MAP_FAILED);
        CHECK(!munmap(own, 2 * length));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    void *(*const work[])(void *) = {attacher, attacher, forker, forker, mapper, mapper};
    pthread_t threads[sizeof work / sizeof *work];
    struct stat status;

    CHECK(argc == 3);
    file = argv[1];
    rounds = (unsigned)atoi(argv[2]);
    CHECK(!stat(file, &status));
    size = (size_t)status.st_size;
    kept = attach();
    kept[0] = 42;
    for (unsigned i = 0; i < sizeof work / sizeof *work; i++)
        CHECK(!pthread_create(&threads[i], NULL, work[i], (void *)(uintptr_t)i));
    for (unsigned i = 0; i < sizeof work / sizeof *work; i++)
        CHECK(!pthread_join(threads[i], NULL));
    CHECK(kept[0] == 42);
    CHECK(!munmap((void *)kept, size));
    puts("done");
    return 0;
}
