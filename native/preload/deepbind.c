/*
 * preload/deepbind.c - dlopen(3) with RTLD_DEEPBIND: a plug-in that prefers its own libraries,
 * and so the C library's mmap(2) to ours. PHP loads its extensions so. Its import table is
 * corrected once it is loaded; what its constructors do is done past us.
 *
 * The C library looks who calls it, to find files by names without a slash. So only a path is
 * loaded from here: any other call goes on to it as it came, and it does not see us.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "core/layout.h"
#include "msharefs.h"
#include "preload/sys.h"

/* The functions of this library. */
static const char *const names[] = {
    "mmap",      "mmap64",  "munmap",          "mprotect", "pkey_mprotect", "mremap",
    "mseal",     "madvise", "process_madvise", "msync",    "mincore",       "mlock",
    "mlock2",    "munlock", "mlockall",        "syscall",  "close",         "close_range",
    "dup2",      "dup3",    "closefrom",       "lseek",    "lseek64",       "statfs",
    "statfs64",  "fstatfs", "fstatfs64",       "prctl",    "shmat",         "remap_file_pages",
    "dlopen",    "mount",   "umount",          "umount2",  "fopen",         "fopen64",
    "setmntent",
};

#define NAMES (sizeof names / sizeof *names)

struct functions {
    uintptr_t ours[NAMES], next[NAMES]; /* next: those that a plug-in finds without us, or 0 */
    uintptr_t plugin, self;             /* where the plug-in is loaded, and this library */
};

/* What is used of a library's dynamic section. */
struct library {
    uintptr_t base, end; /* end: of its memory */
    uintptr_t relro, relro_end;
    const ElfW(Rela) * rela[2]; /* of calls, and of other references */
    size_t count[2];
    const ElfW(Sym) * symbols;
    const char *strings;
};

typedef void *dlopen_function(const char *, int);

/* Addresses there are relocated already, or not. */
static const void *address_in(const struct library *lib, uintptr_t value)
{
    return (const void *)(value < lib->base ? lib->base + value : value);
}

static void read_dynamic(struct library *lib, const ElfW(Dyn) * entry)
{
    for (; entry->d_tag != DT_NULL; entry++)
        switch (entry->d_tag) {
        case DT_JMPREL:
            lib->rela[0] = address_in(lib, entry->d_un.d_ptr);
            break;
        case DT_PLTRELSZ:
            lib->count[0] = entry->d_un.d_val / sizeof *lib->rela[0];
            break;
        case DT_RELA:
            lib->rela[1] = address_in(lib, entry->d_un.d_ptr);
            break;
        case DT_RELASZ:
            lib->count[1] = entry->d_un.d_val / sizeof *lib->rela[1];
            break;
        case DT_SYMTAB:
            lib->symbols = address_in(lib, entry->d_un.d_ptr);
            break;
        case DT_STRTAB:
            lib->strings = address_in(lib, entry->d_un.d_ptr);
            break;
        default:
            break;
        }
}

static void store(const struct library *lib, _Atomic uintptr_t *slot, uintptr_t value)
{
    const uintptr_t at = (uintptr_t)slot;
    void *page = (void *)(at & ~(PAGE_SIZE - 1));
    const bool read_only = at >= lib->relro && at < lib->relro_end;

    if (read_only && sys_mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE))
        return;
    atomic_store(slot, value);
    if (read_only)
        sys_mprotect(page, PAGE_SIZE, PROT_READ);
}

/* A reference that leads to the C library, or has not been followed yet, leads to us. */
static void correct(const struct library *lib, const ElfW(Rela) * rela,
                    const struct functions *functions)
{
    const ElfW(Sym) *symbol = &lib->symbols[ELF64_R_SYM(rela->r_info)];
    _Atomic uintptr_t *slot = (_Atomic uintptr_t *)(lib->base + rela->r_offset);
    const uint64_t type = ELF64_R_TYPE(rela->r_info);
    uintptr_t now;

    if (symbol->st_shndx != SHN_UNDEF || rela->r_addend ||
        (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT && type != R_X86_64_64))
        return;
    now = atomic_load(slot);
    for (unsigned i = 0; i < NAMES; i++) {
        const bool later = type == R_X86_64_JUMP_SLOT && lib->base == functions->plugin &&
                           now >= lib->base && now < lib->end;

        if (!strcmp(lib->strings + symbol->st_name, names[i])) {
            if (functions->ours[i] && (later || (now && now == functions->next[i])))
                store(lib, slot, functions->ours[i]);
            return;
        }
    }
}

static int correct_library(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct library lib = {.base = info->dlpi_addr};
    const struct functions *functions = arg;
    const ElfW(Dyn) *dynamic = NULL;

    (void)size;
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        const uintptr_t start = lib.base + part->p_vaddr, end = start + part->p_memsz;

        if (part->p_type == PT_DYNAMIC)
            dynamic = (const void *)start;
        if (part->p_type == PT_LOAD && end > lib.end)
            lib.end = end;
        if (part->p_type == PT_GNU_RELRO) {
            lib.relro = start & ~(PAGE_SIZE - 1);
            lib.relro_end = end & ~(PAGE_SIZE - 1);
        }
    }
    /* The program itself and the kernel's library have their own rules, and no plug-in's. */
    if (!dynamic || !lib.base || lib.base == functions->self || !*info->dlpi_name)
        return 0;
    read_dynamic(&lib, dynamic);
    if (lib.symbols && lib.strings)
        for (unsigned kind = 0; kind < 2; kind++)
            for (size_t i = 0; lib.rela[kind] && i < lib.count[kind]; i++)
                correct(&lib, &lib.rela[kind][i], functions);
    return 0;
}

static dlopen_function *next_dlopen(void)
{
    static dlopen_function *_Atomic found;
    dlopen_function *next = atomic_load_explicit(&found, memory_order_relaxed);

    if (!next) {
        *(void **)&next = dlsym(RTLD_NEXT, "dlopen");
        atomic_store_explicit(&found, next, memory_order_relaxed);
    }
    return next;
}

static void find_functions(struct functions *functions)
{
    Dl_info self = {.dli_fbase = NULL};
    void *library = dladdr(names, &self) ? next_dlopen()(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD)
                                         : NULL;

    for (unsigned i = 0; library && i < NAMES; i++) {
        functions->ours[i] = (uintptr_t)dlsym(library, names[i]);
        functions->next[i] = (uintptr_t)dlsym(RTLD_NEXT, names[i]);
    }
    if (library)
        dlclose(library);
    functions->self = (uintptr_t)self.dli_fbase;
}

static void *open_deep(const char *file, int flags)
{
    struct functions functions = {.plugin = 0};
    void *got = next_dlopen()(file, flags);
    const int saved = errno;
    struct link_map *map;

    if (!got)
        return NULL;
    if (!dlinfo(got, RTLD_DI_LINKMAP, &map)) {
        functions.plugin = map->l_addr;
        find_functions(&functions);
        dl_iterate_phdr(correct_library, &functions);
    }
    dlerror(); /* ours, if there are any */
    errno = saved;
    return got;
}

MSHARE_API void *dlopen(const char *file, int flags)
{
    if (flags & RTLD_DEEPBIND && file && strchr(file, '/') && !strchr(file, '$'))
        return open_deep(file, flags);
    return next_dlopen()(file, flags); /* a jump, which leaves the caller's address */
}
