/* task.c - clone(2) on a stack of its own; see task.h. */
#include "core/task.h"

#include <stdint.h>

/* Sets out on `stack`, where arg lies, and life above it. */
long task_clone(long flags, void *stack, _Atomic int *parent, _Atomic int *child, void *storage)
    __attribute__((visibility("hidden")));

__asm__(".pushsection .text\n"
        ".type task_clone, @function\n"
        "task_clone:\n"
        "    movq %rcx, %r10\n"
        "    movl $56, %eax\n" /* clone */
        "    syscall\n"
        "    testq %rax, %rax\n"
        "    jz 1f\n"
        "    ret\n"
        "1:  xorl %ebp, %ebp\n"
        "    popq %rdi\n"
        "    popq %rax\n"
        "    call *%rax\n"
        "    movl %eax, %edi\n"
        "    movl $60, %eax\n" /* exit */
        "    syscall\n"
        "    hlt\n"
        ".size task_clone, . - task_clone\n"
        ".popsection\n");

int task_new(int (*life)(void *), void *arg, void *stack, int flags, void *storage,
             _Atomic int *alive)
{
    uintptr_t *top = (uintptr_t *)((uintptr_t)stack & ~(uintptr_t)15) - 2;

    top[0] = (uintptr_t)arg;
    top[1] = (uintptr_t)life;
    return (int)task_clone(flags, top, alive, alive, storage);
}
