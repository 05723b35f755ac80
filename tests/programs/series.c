/*
 * series.c - a program for the kernel series, as in its documentation: open, ftruncate, ioctl,
 * mmap, munmap, unlink. It uses only the numbers of our header.
 *
 *   series region FILE    the creator and an attacher share FILE
 *   series memory         the same with memory of Linux's own, with the same result
 *   series refusals FILE  the calls that FILE, new, refuses and accepts
 *
 * Prints the result of each step on stdout.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <msharefs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define USED (64 * PAGE)

static const char *file; /* NULL: memory */
static int memory = -1;
static size_t size;

static void say(const char *step, long result)
{
    printf("%s: %s\n", step, result < 0 ? strerrorname_np(errno) : "fine");
    fflush(stdout);
}

static void check(const char *step, long result)
{
    if (result >= 0)
        return;
    perror(step);
    exit(1);
}

/* The alignment of size and address, which mshare_info tells. */
static size_t quantum(void)
{
    char path[4096], text[32] = "";
    const char *slash = strrchr(file, '/');

    snprintf(path, sizeof path, "%.*s/mshare_info", (int)(slash - file), file);
    int fd = open(path, O_RDONLY);
    check("mshare_info", fd);
    check("mshare_info", read(fd, text, sizeof text - 1));
    close(fd);
    return strtoul(text, NULL, 10);
}

static int open_it(int flags) { return file ? open(file, flags, 0600) : dup(memory); }

static void create(void)
{
    struct mshare_create object = {
        .region_offset = 0,
        .size = USED,
        .prot = PROT_READ | PROT_WRITE,
        .flags = MAP_ANONYMOUS | MAP_SHARED | MAP_FIXED,
    };
    int fd;

    if (file) {
        size = quantum();
        fd = open(file, O_RDWR | O_CREAT | O_EXCL, 0600);
        check("open", fd);
        say("size", ftruncate(fd, (off_t)size));
        say("object", ioctl(fd, MSHAREFS_CREATE_MAPPING, &object));
        close(fd);
        return;
    }
    size = USED;
    memory = memfd_create("memory", 0);
    say("size", ftruncate(memory, (off_t)size));
    say("object", 0);
}

static char *attach(int flags, int prot)
{
    struct stat status;
    int fd = open_it(flags);

    check("fstat", fstat(fd, &status));
    char *base = mmap(NULL, (size_t)status.st_size, prot, MAP_SHARED, fd, 0);
    say("mmap", base == MAP_FAILED ? -1 : 0);
    close(fd);
    return base;
}

/* Prints how a child's access ends. */
static void die_of(const char *step, char *at)
{
    int status;
    pid_t child = fork();

    if (!child) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile char *)at = 1;
        _exit(0);
    }
    waitpid(child, &status, 0);
    printf("%s: %s\n", step, WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "fine");
    fflush(stdout);
}

static void unmap_object(char *base)
{
    const struct mshare_unmap gone = {.region_offset = 0, .size = PAGE};
    int fd = open_it(O_RDWR);

    say("unmap", file ? ioctl(fd, MSHAREFS_UNMAP, &gone) : munmap(base, PAGE));
    close(fd);
}

/* The other process: it opens by itself, and finds the creator's memory. */
static int consume(void)
{
    char *base = attach(O_RDWR, PROT_READ | PROT_WRITE);

    for (size_t at = 0; at < USED; at += PAGE)
        if (base[at] != (char)(at / PAGE))
            return 1;
    strcpy(base + PAGE, "an answer");
    say("detach", munmap(base, size));
    return 0;
}

static long create_mapping(int fd, size_t offset, size_t length, unsigned flags)
{
    const struct mshare_create object = {.region_offset = offset,
                                         .size = length,
                                         .prot = PROT_READ | PROT_WRITE,
                                         .flags = flags,
                                         .fd = 9999};

    return ioctl(fd, MSHAREFS_CREATE_MAPPING, &object);
}

static long unmap(int fd, size_t offset, size_t length)
{
    const struct mshare_unmap gone = {.region_offset = offset, .size = length};

    return ioctl(fd, MSHAREFS_UNMAP, &gone);
}

static long map(int fd, int prot)
{
    void *base = mmap(NULL, size, prot, MAP_SHARED, fd, 0);

    return base == MAP_FAILED ? -1 : munmap(base, size);
}

static int refusals(void)
{
    const unsigned anonymous = MAP_ANONYMOUS | MAP_SHARED | MAP_FIXED;
    char byte = 0;

    size = quantum();
    int fd = open(file, O_RDWR | O_CREAT | O_EXCL, 0600);
    check("open", fd);
    say("open, exclusively, what is there", open(file, O_RDWR | O_CREAT | O_EXCL, 0600));
    say("object without a size", create_mapping(fd, 0, PAGE, anonymous));
    say("unknown command without a size", ioctl(fd, _IO('x', 30)));
    say("half a quantum", ftruncate(fd, (off_t)size / 2));
    say("fallocate not from 0", fallocate(fd, 0, (off_t)size, (off_t)size));
    say("fallocate keeping the size", fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)size));
    say("size", ftruncate(fd, (off_t)size));
    say("size again", ftruncate(fd, (off_t)size));
    say("larger", fallocate(fd, 0, 0, 2 * (off_t)size));
    say("unknown command", ioctl(fd, _IO('x', 30)));
    say("nowhere to read the object", ioctl(fd, MSHAREFS_CREATE_MAPPING, NULL));
    say("private object", create_mapping(fd, 0, PAGE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED));
    say("object wherever", create_mapping(fd, 0, PAGE, MAP_ANONYMOUS | MAP_SHARED));
    say("object of nothing", create_mapping(fd, 0, 0, anonymous));
    say("object between pages", create_mapping(fd, 1, PAGE, anonymous));
    say("object over the end", create_mapping(fd, size - PAGE, 2 * PAGE, anonymous));
    say("object of a bad descriptor", create_mapping(fd, 0, PAGE, MAP_SHARED | MAP_FIXED));
    say("object", create_mapping(fd, 0, USED, anonymous));
    say("object instead", create_mapping(fd, PAGE, PAGE, anonymous));
    say("object beside", create_mapping(fd, 0, PAGE, anonymous | MAP_FIXED_NOREPLACE));
    say("unmap a hole", unmap(fd, USED, PAGE));
    say("unmap between pages", unmap(fd, 1, PAGE));
    say("unmap over the end", unmap(fd, PAGE, size));
    say("read", read(fd, &byte, 1));
    say("write", write(fd, &byte, 1));
    say("fsync", fsync(fd));
    say("mmap", map(fd, PROT_READ | PROT_WRITE));
    close(fd);
    fd = open(file, O_RDONLY);
    say("size, read-only", ftruncate(fd, (off_t)size));
    say("mmap to write, read-only", map(fd, PROT_READ | PROT_WRITE));
    say("mmap to read, read-only", map(fd, PROT_READ));
    close(fd);
    say("unlink", unlink(file));
    return 0;
}

int main(int argc, char **argv)
{
    int status;

    if (argc < 2)
        return 2;
    file = argv[2]; /* NULL: none */
    if (!strcmp(argv[1], "refusals"))
        return refusals();
    create();
    char *base = attach(O_RDWR, PROT_READ | PROT_WRITE);
    for (size_t at = 0; at < USED; at += PAGE)
        base[at] = (char)(at / PAGE);
    pid_t child = fork();
    if (!child)
        _exit(consume());
    waitpid(child, &status, 0);
    printf("consumer: %d\nanswer: %s\n", status, base + PAGE);
    die_of("store", base + 2 * PAGE);
    printf("stored: %d\n", base[2 * PAGE]);
    fflush(stdout);
    unmap_object(base);
    die_of("store into a hole", base);
    char *reader = attach(O_RDWR, PROT_READ);
    die_of("store read-only", reader + PAGE);
    printf("read: %s\n", reader + PAGE);
    fflush(stdout);
    say("detach", munmap(reader, size));
    say("detach", munmap(base, size));
    die_of("store when detached", base + PAGE);
    if (file)
        say("unlink", unlink(file));
    return 0;
}
