/*
 * A shared object's relocated pointers (RELRO) as memory of a region: private while the dynamic
 * linker writes them, then read-only, sealed, and with one set of page tables for all children of
 * a fork, as a zygote would have it.
 *
 *   cc -DLIBRARY -shared -fPIC -Wl,-z,relro,-z,now,-z,max-page-size=0x200000 -o librelro.so relro.c
 *   cc -o relro relro.c $(pkg-config --cflags --libs msharefs)
 *   ./relro /mnt/relro ./librelro.so
 *
 * Page tables can be shared for whole quanta of the region (2 MiB at least). So the pointers that
 * are to be shared have such quanta for themselves: a zygote would pack those of many libraries.
 * Says how many processes read them by how many page tables.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <err.h>
#include <fcntl.h>
#include <link.h>
#include <msharefs.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 10
#define PAGES 512

struct page {
    int (*pointer)(void);
    char rest[4096 - sizeof(void *)];
};

#ifdef LIBRARY
static int answer(void) { return 42; }
const struct page pages[PAGES] __attribute__((aligned(2 << 20))) = {[0 ... PAGES - 1] = {answer, ""}};
#else

struct range {
    const char *library;
    uintptr_t start, end;
};

/* Finds what the dynamic linker has relocated and then made read-only. */
static int find(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct range *relro = arg;

    for (int i = 0; size && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];

        if (part->p_type == PT_GNU_RELRO && strstr(info->dlpi_name, relro->library)) {
            relro->start = info->dlpi_addr + part->p_vaddr;
            relro->end = relro->start + part->p_memsz;
        }
    }
    return 0;
}

static int child(const struct page *pages)
{
    for (int i = 0; i < PAGES; i++)
        if (pages[i].pointer() != 42)
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    struct range relro = {argc > 2 ? argv[2] : "", 0, 0};
    void *library = argc > 2 ? dlopen(argv[2], RTLD_NOW) : NULL;
    const struct page *pages = library ? dlsym(library, "pages") : NULL;
    const int from = MAP_SHARED | MAP_FIXED | (int)MSHARE_MAP_FROM;
    struct mshare_stat region;
    int status, go[2], fd;
    size_t size;

    if (!pages)
        errx(1, "%s", argc > 2 ? dlerror() : "usage: relro REGION LIBRARY");
    dl_iterate_phdr(find, &relro);
    fd = open(argv[1], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || mshare_stat(fd, &region, sizeof region))
        err(1, "%s", argv[1]);
    relro.start = (relro.start + region.quantum - 1) & -region.quantum;
    relro.end &= -region.quantum;
    if (relro.start >= relro.end)
        errx(1, "no whole quantum of %s is RELRO", argv[2]);
    size = relro.end - relro.start;
    if (ftruncate(fd, (off_t)size) ||
        mshare_map(fd, 0, size, PROT_READ, from, -1, (off_t)relro.start) ||
        mshare_seal(fd, 0, size) || pipe(go))
        err(1, "moving RELRO into %s", argv[1]);
    for (int i = 0; i < CHILDREN; i++)
        if (!fork()) {
            close(go[1]);
            status = child(pages);
            read(go[0], &fd, 1); /* until its siblings are there, too */
            _exit(status);
        }
    do {
        if (mshare_stat(fd, &region, sizeof region))
            err(1, "%s", argv[1]);
    } while (region.links < CHILDREN && !waitpid(-1, &status, WNOHANG) && !usleep(1000));
    close(go[1]);
    for (int i = 0; i < CHILDREN; i++)
        if (wait(&status) < 0 || status)
            errx(1, "a child ended with status %d", status);
    printf("%zu KiB of RELRO in %lu processes, with %lu bytes of page tables\n", size >> 10,
           region.clients, region.page_table_bytes);
    if (mshare_protect(fd, 0, size, PROT_READ | PROT_WRITE))
        warn("making it writable again");
    return 0;
}
#endif
