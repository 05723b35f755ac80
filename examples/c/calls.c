/*
 * Every call of msharefs.h, one after the other. The manual pages take their examples from here:
 * what follows a comment with the name of a page, up to the next one.
 *
 *     ./calls /mnt/region
 */
#include <err.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <msharefs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MIB = 1 << 20 };

/* mshare_create(3) */
/* A region that no directory shows. Others get its descriptor over a socket. */
static int without_a_name(void)
{
    int fd = mshare_create(O_CLOEXEC);

    if (fd < 0 || ftruncate(fd, 4 * MIB))
        err(1, "mshare_create");
    return fd;
}

/* mshare_map(3) */
/* 2 MiB of zeros at offset 0. */
static void map(int fd)
{
    int flags = MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS;

    if (mshare_map(fd, 0, 2 * MIB, PROT_READ | PROT_WRITE, flags, -1, 0))
        err(1, "mshare_map");
}

/* mshare_attach(3) */
/* The whole region, wherever there is room for it. */
static char *attach(int fd)
{
    char *memory = mshare_attach(fd, 0, 0, NULL, 0);

    if (memory == MAP_FAILED)
        err(1, "mshare_attach");
    strcpy(memory, "hello");
    return memory;
}

/* mshare_budget(3) */
/* This process keeps 1 MiB of its own page tables for the region, not more. */
static void limit(char *memory)
{
    if (mshare_budget(memory, MIB))
        err(1, "mshare_budget");
}

/* mshare_protect(3) */
/* From here on nobody can write the first page, in any process. */
static void make_read_only(int fd)
{
    if (mshare_protect(fd, 0, 4096, PROT_READ))
        err(1, "mshare_protect");
}

/* mshare_advise(3) */
/* All pages are there before anybody touches them. */
static void populate(int fd)
{
    if (mshare_advise(fd, 0, 2 * MIB, MADV_POPULATE_READ))
        err(1, "mshare_advise");
}

/* mshare_lock(3) */
/* The first page stays in memory, at the expense of the region's owner. */
static void lock(int fd)
{
    if (mshare_lock(fd, 0, 4096, 0))
        err(1, "mshare_lock");
}

/* mshare_unlock(3) */
/* What was locked of the region may be reclaimed again. */
static void unlock(int fd)
{
    if (mshare_unlock(fd, 0, 2 * MIB))
        err(1, "mshare_unlock");
}

/* mshare_mbind(3) */
/* Pages that come from now on are made on node 0. */
static void bind_to_a_node(int fd)
{
    unsigned long nodes = 1 << 0;

    if (mshare_mbind(fd, 0, 2 * MIB, MPOL_BIND, &nodes, 64, 0))
        warn("mshare_mbind");
}

/* mshare_sync(3) */
/* What was stored in files of the range is on their disks. */
static void sync_files(int fd)
{
    if (mshare_sync(fd, 0, 2 * MIB, MS_SYNC))
        err(1, "mshare_sync");
}

/* mshare_query(3) */
/* How many of some pages are in memory, whoever has brought them there. */
static int resident(int fd, int pages)
{
    unsigned char vec[512];
    int found = 0;

    if (mshare_query(fd, 0, pages * 4096, vec))
        err(1, "mshare_query");
    for (int page = 0; page < pages; page++)
        found += vec[page] & 1;
    return found;
}

/* mshare_seal(3) */
/* The first page keeps its mapping and its protection for ever. */
static void seal(int fd)
{
    if (mshare_seal(fd, 0, 4096))
        err(1, "mshare_seal");
}

/* mshare_set_owner(3) */
/* The region is another process's from now on. */
static void hand_over(int fd, pid_t pid)
{
    int pidfd = syscall(SYS_pidfd_open, pid, 0);

    if (pidfd < 0 || mshare_set_owner(fd, pidfd))
        err(1, "mshare_set_owner");
    close(pidfd);
}

/* mshare_stat(3) */
/* What the region's page tables take, once for all processes. */
static unsigned long table_bytes(int fd)
{
    struct mshare_stat found;

    if (mshare_stat(fd, &found, sizeof found))
        err(1, "mshare_stat");
    return found.page_table_bytes;
}

/* mshare_unmap(3) */
/* All but the first page goes; a touch is SIGSEGV in every process. */
static void unmap(int fd)
{
    if (mshare_unmap(fd, 4096, 2 * MIB - 4096))
        err(1, "mshare_unmap");
}

/* mshare_detach(3) */
/* The region stays as it is, for others. */
static void detach(char *memory)
{
    if (mshare_detach(memory))
        err(1, "mshare_detach");
}

/* mshare_version(3) */
/* Of the library that runs, which need not be the one that was compiled against. */
static void tell_version(void) { printf("libmsharefs %s\n", mshare_version()); }

/* main */
int main(int argc, char **argv)
{
    int fd, nameless;
    char *memory;

    if (argc != 2)
        errx(2, "usage: calls REGION");
    tell_version();
    fd = open(argv[1], O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 4 * MIB))
        err(1, "%s", argv[1]);
    nameless = without_a_name();
    map(fd);
    memory = attach(fd);
    limit(memory);
    bind_to_a_node(fd);
    populate(fd);
    lock(fd);
    unlock(fd);
    sync_files(fd);
    make_read_only(fd);
    seal(fd);
    hand_over(nameless, getpid());
    printf("%s: %d pages, %lu bytes of page tables\n", memory, resident(fd, 512), table_bytes(fd));
    unmap(fd);
    printf("%s: %d page\n", memory, resident(fd, 1));
    detach(memory);
    return 0;
}
