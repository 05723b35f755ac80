/*
 * raw_map.c: maps 4 MiB of shared memory with an instruction of its own, past the C library, says
 * so, and waits for the end of its input.
 */
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>

int main(void)
{
    register long flags __asm__("r10") = MAP_SHARED | MAP_ANONYMOUS;
    register long fd __asm__("r8") = -1;
    register long offset __asm__("r9") = 0;
    const long length = 4 << 20, prot = PROT_READ | PROT_WRITE;
    long got = SYS_mmap;

    __asm__ volatile("syscall"
                     : "+a"(got)
                     : "D"(0l), "S"(length), "d"(prot), "r"(flags), "r"(fd), "r"(offset)
                     : "rcx", "r11", "memory");
    puts(got > 0 ? "mapped" : "failed");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
