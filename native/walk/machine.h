/*
 * machine.h - a virtual machine of one processor (kvm(7)) that walks page tables: it has no kernel
 * of its own, and its user mode runs loops over lists of addresses. Functions return 0 or -errno.
 *
 *   guest-physical  0        TABLES_BASE         DATA_BASE
 *                   | low |  | table frames |    | the region's memory, where it has pages |
 *
 *   low             0          USER_AT              SPACES_AT
 *                   | kernel | | loops, lists |     | upper tables of address spaces |
 *
 * An address space has the low 4 MiB in its first PGD entry: supervisor and user, 2 MiB each.
 */
#ifndef MSHARE_MACHINE_H
#define MSHARE_MACHINE_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#define USER_AT (2ull << 20)
#define SPACES_AT (4ull << 20)
/* Addresses of a list: what fits beside the loops in the 2 MiB of user mode, with the results. */
#define LIST_MAX 65536u
/* The PMD table with the 2 MiB pages of the low memory. */
#define LOW_PMD 0x1000ull

enum loop {
    LOOP_READ,  /* a load from each address; the values are the results */
    LOOP_WRITE, /* a locked OR of 0 first: a store that changes nothing, whoever else stores */
    LOOP_JUMP,  /* a call of each address */
    LOOP_TIME,  /* loads that wait for each other; the only result is their cycles */
};

struct machine {
    int kvm, vm, cpu;
    struct kvm_run *run;
    uint64_t run_bytes;
    uint8_t *low;
    uint64_t low_bytes;
    struct kvm_sregs user;
    bool has_pcid;
    unsigned memories; /* slots in use */
    struct kvm_userspace_memory_region tables;
    /* [0, count) */
    uint64_t *list, *results;
};

/* Where a loop has stopped: behind its list, or at an exception. */
struct stop {
    bool done;
    uint64_t index; /* in the list */
    unsigned vector;
    uint64_t error, address; /* the error code and CR2 */
};

/* A machine with `bytes` of low memory. *failed: what could not be done. -ENXIO: there is no KVM;
 * -EOVERFLOW: its physical addresses do not reach DATA_BASE. */
int machine_open(struct machine *machine, uint64_t bytes, const char **failed);
void machine_close(struct machine *machine);
/* Gives it memory of ours. */
int machine_add(struct machine *machine, uint64_t physical, const void *memory, uint64_t bytes);
/* machine_add() of the table frames, once. */
int machine_add_tables(struct machine *machine, uint64_t physical, const void *memory,
                       uint64_t bytes);
/* Translations that were found in the table frames are used no longer. */
int machine_forget(struct machine *machine);
/* Runs a loop in user mode over the list, from `from` on, in the address space with that PGD. */
int machine_run(struct machine *machine, uint64_t pgd, enum loop loop, uint64_t from,
                uint64_t count, struct stop *stop);
/* From now on the low 12 bits of CR3 are a PCID, or not. The TLB is emptied. Precondition for `on`:
 * has_pcid. */
void machine_use_pcids(struct machine *machine, bool on);
#define CR3_NOFLUSH (1ull << 63) /* what the TLB has for the PCID stays */
/* Writes CR3 from inside, as a kernel does that goes on with another process; then machine_run() in
 * the address space machine->user.cr3 keeps what the TLB has. */
int machine_switch(struct machine *machine, uint64_t cr3);
/* A table of the low memory. */
static inline uint64_t *machine_table(const struct machine *machine, uint64_t physical)
{
    return (uint64_t *)(machine->low + physical);
}

#endif
