/* walk/machine.c - see machine.h. */
#define _GNU_SOURCE
#include "walk/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/layout.h"

#define SHADOWS_MAX (1ul << 18) /* 1 GiB, if all of them were needed */

/* The low memory, below USER_AT. */
enum {
    GDT_AT = 0x2000,
    IDT_AT = 0x3000,
    TSS_AT = 0x4000,
    STUBS_AT = 0x5000, /* one for each vector, 16 bytes */
    SWITCH_AT = 0x6000,
    STACK_END = 0x8000,
};

/* And from USER_AT on. */
#define LOOPS_AT USER_AT
#define LIST_AT (USER_AT + (64ull << 10))
#define RESULTS_AT (LIST_AT + LIST_MAX * sizeof(uint64_t))

enum { CODE = 1 << 3, TASK = 3 << 3, USER_DATA = 5 << 3 | 3, USER_CODE = 6 << 3 | 3 };
enum { VECTORS = 256, VECTOR_UD = 6, STUB_BYTES = 16, PORT = 0x10, CPUID_MAX = 256 };
#define CPUID_PCID (1u << 17) /* leaf 1, ECX */

#define CR0_USED 0x80010033u /* PG, WP, NE, ET, MP, PE */
#define CR4_PAE 0x20u
#define CR4_PCIDE 0x20000u
#define EFER_USED 0xd00u /* NXE, LMA, LME */

/* In: rsi the list, rdi the results, rcx how many. An undefined instruction is the end: not every
 * KVM lets user mode call a gate. */
extern const uint8_t loop_read[], loop_write[], loop_jump[], loop_time[], loop_end[];
asm(".pushsection .rodata\n"
    "loop_read:  lodsq\n"
    "            mov (%rax), %rax\n"
    "            stosq\n"
    "            dec %rcx\n"
    "            jnz loop_read\n"
    "            ud2\n"
    "loop_write: lodsq\n"
    "            lock orq $0, (%rax)\n"
    "            mov (%rax), %rax\n"
    "            stosq\n"
    "            dec %rcx\n"
    "            jnz loop_write\n"
    "            ud2\n"
    "loop_jump:  lodsq\n"
    "            call *%rax\n"
    "            dec %rcx\n"
    "            jnz loop_jump\n"
    "            ud2\n"
    "loop_time:  lfence\n"
    "            rdtsc\n"
    "            shl $32, %rdx\n"
    "            or %rdx, %rax\n"
    "            mov %rax, %r8\n"
    "            xor %ebx, %ebx\n"
    "1:          mov (%rsi, %rbx), %rax\n"
    "            mov (%rax), %rbx\n"
    "            and $0, %rbx\n"
    "            add $8, %rsi\n"
    "            dec %rcx\n"
    "            jnz 1b\n"
    "            lfence\n"
    "            rdtsc\n"
    "            shl $32, %rdx\n"
    "            or %rdx, %rax\n"
    "            sub %r8, %rax\n"
    "            stosq\n"
    "            ud2\n"
    "loop_end:\n"
    ".popsection\n");

static uint64_t loop_at(enum loop loop)
{
    const uint8_t *const loops[] = {loop_read, loop_write, loop_jump, loop_time};

    return LOOPS_AT + (uint64_t)(loops[loop] - loop_read);
}

/* Each vector's stub says its number and stops: what is to be done is decided outside. */
static void write_kernel(struct machine *machine)
{
    uint64_t *gdt = machine_table(machine, GDT_AT), *idt = machine_table(machine, IDT_AT);
    const uint64_t stack = STACK_END;

    gdt[CODE >> 3] = 0x00af9b000000ffffull;
    gdt[TASK >> 3] = 0x67ull | (uint64_t)TSS_AT << 16 | 0x8bull << 40;
    gdt[USER_DATA >> 3] = 0x00cff3000000ffffull;
    gdt[USER_CODE >> 3] = 0x00affb000000ffffull;
    memcpy(machine->low + TSS_AT + 4, &stack, sizeof stack); /* RSP0 */
    for (uint64_t vector = 0; vector < VECTORS; vector++) {
        const uint64_t at = STUBS_AT + vector * STUB_BYTES;
        const uint8_t stub[] = {0xb0, (uint8_t)vector, 0xe6, PORT, 0xf4}; /* mov, out, hlt */

        memcpy(machine->low + at, stub, sizeof stub);
        idt[2 * vector] = at | (uint64_t)CODE << 16 | 0x8eull << 40;
    }
    const uint8_t switches[] = {0x0f, 0x22, 0xd8, 0xe6, PORT, 0xf4}; /* mov rax to cr3, out, hlt */

    memcpy(machine->low + SWITCH_AT, switches, sizeof switches);
    machine_table(machine, LOW_PMD)[0] = ENTRY_PRESENT | ENTRY_RW | ENTRY_HUGE;
    machine_table(machine, LOW_PMD)[1] = USER_AT | ENTRY_PRESENT | ENTRY_RW | ENTRY_USER |
                                         ENTRY_HUGE;
    memcpy(machine->low + LOOPS_AT, loop_read, (size_t)(loop_end - loop_read));
}

static int set_registers(struct machine *machine)
{
    const struct kvm_segment code = {.limit = 0xffffffff,
                                     .selector = USER_CODE,
                                     .type = 11,
                                     .present = 1,
                                     .dpl = 3,
                                     .s = 1,
                                     .l = 1,
                                     .g = 1};
    const struct kvm_segment data = {.limit = 0xffffffff,
                                     .selector = USER_DATA,
                                     .type = 3,
                                     .present = 1,
                                     .dpl = 3,
                                     .s = 1,
                                     .db = 1,
                                     .g = 1};
    struct kvm_sregs *user = &machine->user;

    if (ioctl(machine->cpu, KVM_GET_SREGS, user))
        return -errno;
    user->cs = code;
    user->ds = user->es = user->fs = user->gs = user->ss = data;
    user->tr = (struct kvm_segment){
        .base = TSS_AT, .limit = 0x67, .selector = TASK, .type = 11, .present = 1};
    user->gdt = (struct kvm_dtable){.base = GDT_AT, .limit = 8 * 8 - 1};
    user->idt = (struct kvm_dtable){.base = IDT_AT, .limit = VECTORS * 16 - 1};
    user->cr0 = CR0_USED;
    user->cr4 = CR4_PAE;
    user->efer = EFER_USED;
    return 0;
}

static int set_cpuid(struct machine *machine)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[CPUID_MAX];
    } cpuid = {.head.nent = CPUID_MAX};
    unsigned bits = 36; /* what a machine has whose CPUID does not say */

    if (ioctl(machine->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid))
        return -errno;
    for (unsigned i = 0; i < cpuid.head.nent && i < CPUID_MAX; i++) {
        if (cpuid.entries[i].function == 0x80000008)
            bits = cpuid.entries[i].eax & 0xff;
        if (cpuid.entries[i].function == 1)
            machine->has_pcid = cpuid.entries[i].ecx & CPUID_PCID;
    }
    if (1ull << bits <= DATA_BASE)
        return -EOVERFLOW;
    return ioctl(machine->cpu, KVM_SET_CPUID2, &cpuid) ? -errno : 0;
}

static int make(struct machine *machine, uint64_t bytes)
{
    machine->vm = ioctl(machine->kvm, KVM_CREATE_VM, 0ul);
    machine->cpu = machine->vm < 0 ? -1 : ioctl(machine->vm, KVM_CREATE_VCPU, 0ul);
    const int run_bytes = ioctl(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0ul);

    if (machine->cpu < 0 || run_bytes < 0)
        return -errno;
    machine->run_bytes = (uint64_t)run_bytes;
    machine->run = mmap(NULL, machine->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, machine->cpu,
                        0);
    if (machine->run == MAP_FAILED)
        return -errno;
    machine->low = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (machine->low == MAP_FAILED)
        return -errno;
    machine->low_bytes = bytes;
    machine->list = machine_table(machine, LIST_AT);
    machine->results = machine_table(machine, RESULTS_AT);
    write_kernel(machine);
    /* With shadow paging KVM has a copy of each table: room for all, or it makes some again and
     * again. With nested paging the number has no meaning. */
    if (ioctl(machine->vm, KVM_SET_NR_MMU_PAGES, SHADOWS_MAX))
        return -errno;
    return machine_add(machine, 0, machine->low, bytes);
}

int machine_open(struct machine *machine, uint64_t bytes, const char **failed)
{
    *machine = (struct machine){.vm = -1, .cpu = -1, .run = MAP_FAILED, .low = MAP_FAILED};
    *failed = "/dev/kvm";
    machine->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (machine->kvm < 0)
        return errno == ENOENT || errno == ENODEV ? -ENXIO : -errno;
    *failed = "making a virtual machine";
    int err = make(machine, bytes);
    if (!err)
        err = set_cpuid(machine);
    if (!err)
        err = set_registers(machine);
    return err;
}

void machine_close(struct machine *machine)
{
    if (machine->run != MAP_FAILED)
        munmap(machine->run, machine->run_bytes);
    if (machine->cpu >= 0)
        close(machine->cpu);
    if (machine->vm >= 0)
        close(machine->vm);
    if (machine->kvm >= 0)
        close(machine->kvm);
    if (machine->low != MAP_FAILED)
        munmap(machine->low, machine->low_bytes);
}

static int add(struct machine *machine, const struct kvm_userspace_memory_region *memory)
{
    return ioctl(machine->vm, KVM_SET_USER_MEMORY_REGION, memory) ? -errno : 0;
}

int machine_add(struct machine *machine, uint64_t physical, const void *memory, uint64_t bytes)
{
    const struct kvm_userspace_memory_region made = {.slot = machine->memories++,
                                                     .guest_phys_addr = physical,
                                                     .memory_size = bytes,
                                                     .userspace_addr = (uintptr_t)memory};

    return add(machine, &made);
}

int machine_add_tables(struct machine *machine, uint64_t physical, const void *memory,
                       uint64_t bytes)
{
    machine->tables = (struct kvm_userspace_memory_region){.slot = machine->memories++,
                                                           .guest_phys_addr = physical,
                                                           .memory_size = bytes,
                                                           .userspace_addr = (uintptr_t)memory};
    return add(machine, &machine->tables);
}

int machine_forget(struct machine *machine)
{
    struct kvm_userspace_memory_region none = machine->tables;
    int err;

    /* Whatever KVM has made of the tables goes with the memory that they were in. */
    none.memory_size = 0;
    err = add(machine, &none);
    return err ? err : add(machine, &machine->tables);
}

static int read_stop(struct machine *machine, uint64_t count, struct stop *stop)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    if (machine->run->exit_reason != KVM_EXIT_IO || machine->run->io.port != PORT)
        return -EIO;
    if (ioctl(machine->cpu, KVM_GET_REGS, &regs) || ioctl(machine->cpu, KVM_GET_SREGS, &sregs))
        return -errno;
    if (regs.rsp >= STACK_END)
        return -EIO;
    stop->vector = *((uint8_t *)machine->run + machine->run->io.data_offset);
    stop->done = stop->vector == VECTOR_UD && !regs.rcx;
    stop->index = count - regs.rcx;
    stop->error = *machine_table(machine, regs.rsp);
    stop->address = sregs.cr2;
    return 0;
}

static int run(struct machine *machine, const struct kvm_sregs *sregs, const struct kvm_regs *regs)
{
    int result;

    if (ioctl(machine->cpu, KVM_SET_SREGS, sregs) || ioctl(machine->cpu, KVM_SET_REGS, regs))
        return -errno;
    do
        result = ioctl(machine->cpu, KVM_RUN, 0ul);
    while (result && errno == EINTR);
    return result ? -errno : 0;
}

int machine_run(struct machine *machine, uint64_t pgd, enum loop loop, uint64_t from,
                uint64_t count, struct stop *stop)
{
    const struct kvm_regs regs = {
        .rip = loop_at(loop),
        .rsp = LIST_AT - 64,
        .rflags = 2,
        .rsi = LIST_AT + from * sizeof(uint64_t),
        .rdi = RESULTS_AT + from * sizeof(uint64_t),
        .rcx = count - from,
    };
    int err;

    machine->user.cr3 = pgd;
    err = run(machine, &machine->user, &regs);
    return err ? err : read_stop(machine, count, stop);
}

void machine_use_pcids(struct machine *machine, bool on)
{
    machine->user.cr4 = on ? CR4_PAE | CR4_PCIDE : CR4_PAE;
    machine->user.cr3 = SPACES_AT; /* of any address space: the low memory is in all of them */
}

int machine_switch(struct machine *machine, uint64_t cr3)
{
    const struct kvm_regs regs = {.rip = SWITCH_AT, .rsp = STACK_END, .rflags = 2, .rax = cr3};
    struct kvm_sregs kernel = machine->user;
    int err;

    kernel.cs.selector = CODE;
    kernel.cs.dpl = 0;
    kernel.ss.selector = 0;
    kernel.ss.dpl = 0;
    err = run(machine, &kernel, &regs);
    if (!err && (machine->run->exit_reason != KVM_EXIT_IO || machine->run->io.port != PORT))
        err = -EIO;
    if (!err && ioctl(machine->cpu, KVM_GET_SREGS, &kernel))
        err = -errno;
    if (!err && kernel.cr3 != (cr3 & ~CR3_NOFLUSH)) /* an exception's stub would end there, too */
        err = -EIO;
    machine->user.cr3 = kernel.cr3;
    return err;
}
