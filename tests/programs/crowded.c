/*
 * crowded.c - a region in a process that has no room, or has it locked: crowded HOW REGION.
 *
 * Prints what an access is answered: "SIGSEGV CODE", "SIGBUS CODE" or the byte that was loaded.
 * Page 0 of the region is a hole, page 1 read-only, page 2 without access, page 3 of a file. HOW:
 * "hole", "store", "load", "file" after as many mappings as the process may have; "sealed-store",
 * a store to page 1 of a window that is sealed; "lock", mlockall(2) alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "msharefs.h"

#define PAGE 4096ul
#define LIMIT 200000ul /* more than vm.max_map_count */
#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static void must(int right, const char *what)
{
    if (right)
        return;
    perror(what);
    exit(1);
}

static void answer(int number, siginfo_t *info, void *context)
{
    (void)context;
    printf("%s %d\n", number == SIGSEGV ? "SIGSEGV" : "SIGBUS", info->si_code);
    fflush(stdout);
    _exit(0);
}

static void fill_up(void)
{
    char *many = mmap(NULL, LIMIT * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
    unsigned long at = 0;

    must(many != MAP_FAILED, "mmap");
    while (at < LIMIT && !mprotect(many + at * PAGE, PAGE, PROT_NONE))
        at += 2;
    must(at < LIMIT && errno == ENOMEM, "as many mappings as there may be");
    /* An odd one may be left. */
    for (int i = 0; i < 8; i++)
        if (mmap(NULL, PAGE, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
            return;
}

int main(int count, char **argument)
{
    const struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    const char *how = count > 1 ? argument[1] : "";
    volatile char *base;
    const int fd = count == 3 ? open(argument[2], O_RDWR) : -1;

    must(fd >= 0, "open");
    base = mshare_attach(fd, 0, 0, NULL, 0);
    must(base != MAP_FAILED, "mshare_attach");
    must(!sigaction(SIGSEGV, &action, NULL) && !sigaction(SIGBUS, &action, NULL), "sigaction");
    alarm(60);
    if (!strcmp(how, "lock")) {
        must(!mlockall(MCL_CURRENT), "mlockall");
        puts("locked");
        printf("%d\n", base[0]);
        return 0;
    }
    if (!strcmp(how, "sealed-store"))
        must(!syscall(SYS_mseal, base, (size_t)(2ul << 20), 0ul), "mseal");
    else
        fill_up();
    if (!strcmp(how, "store") || !strcmp(how, "sealed-store"))
        base[PAGE] = 1;
    printf("%d\n", base[!strcmp(how, "load") ? 2 * PAGE : !strcmp(how, "file") ? 3 * PAGE : 0]);
    return 0;
}
