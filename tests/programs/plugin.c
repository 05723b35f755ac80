/*
 * plugin.c - a plug-in that maps memory, for whoever loads it with RTLD_DEEPBIND.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mman.h>

void *plugin_map(size_t size);
void *plugin_map_by_pointer(size_t size);
int plugin_unmap(void *addr, size_t size);

/* A reference that is not a call. */
static void *(*volatile by_pointer)(void *, size_t, int, int, int, off_t) = mmap;

void *plugin_map(size_t size)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void *plugin_map_by_pointer(size_t size)
{
    return by_pointer(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

int plugin_unmap(void *addr, size_t size) { return munmap(addr, size); }
