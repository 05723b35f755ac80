/*
 * series.c - a program for the kernel series, as its documentation writes one: open, ftruncate,
 * ioctl, mmap, munmap, unlink. Of ours it has the numbers only.
 *
 *   series region FILE    the creator and an attacher share FILE
 *   series memory         the same with memory of Linux's own, which must come out the same
 *
 * Says on stdout what each step came to.
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

/* The alignment of size and address: what mshare_info is for. */
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

/* What a child's access ends in. */
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

int main(int argc, char **argv)
{
    int status;

    if (argc < 2)
        return 2;
    file = strcmp(argv[1], "region") ? NULL : argv[2];
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
