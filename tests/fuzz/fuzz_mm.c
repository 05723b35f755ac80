/*
 * fuzz_mm.c - a host mm that anybody may have scribbled on: whatever is in shared memory, the
 * core answers, with one of the expected errnos, and touches nothing outside of it.
 *
 * An input is a shape and then steps: scribble one number, or do one of the things that a
 * server or a client does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/audit.h"
#include "core/fault.h"
#include "core/slots.h"
#include "core/touched.h"
#include "region.h"
#include "server/hostmm.h"
#include "server/inspect.h"
#include "server/prefill.h"

#define STEPS_MAX 64
#define FRAMES_LOOKED_AT_AGAIN 10000
#define COPIED 8
/* Empty space around the object, for wild accesses: as far as an index of 32 bits reaches. */
#define GUARD_BYTES (64ull << 30)

void *__real_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
int __real_munmap(void *addr, size_t length);
int __wrap_munmap(void *addr, size_t length);

/* For each shape one, and one more to open it again; by the bytes of its `.mm`. */
static struct {
    uint8_t *at;
    size_t length;
    bool taken;
} places[2 * REGION_SHAPES];

/* The core's own mmap(2) of a `.mm` object goes to a place with nothing before and behind it. */
void *__wrap_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    const int none = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    unsigned i = 0;

    if (addr || fd < 0)
        return __real_mmap(addr, length, prot, flags, fd, offset);
    while (places[i].at && (places[i].taken || places[i].length != length))
        if (++i == sizeof places / sizeof *places)
            abort();
    if (!places[i].at) {
        places[i].at = (uint8_t *)__real_mmap(NULL, 3 * GUARD_BYTES, PROT_NONE, none, -1, 0) +
                       GUARD_BYTES;
        places[i].length = length;
    }
    places[i].taken = true;
    return __real_mmap(places[i].at, length, prot, flags | MAP_FIXED, fd, offset);
}

/* Leaves no gap that another mapping could take. */
int __wrap_munmap(void *addr, size_t length)
{
    const int none = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

    for (unsigned i = 0; i < sizeof places / sizeof *places; i++)
        if (addr == places[i].at) {
            places[i].taken = false;
            return __real_mmap(addr, length, PROT_NONE, none, -1, 0) == MAP_FAILED ? -1 : 0;
        }
    return __real_munmap(addr, length);
}

/* The answers that an operation may give about bytes without sense, or with a wrong sense. */
static void answered(int64_t result, const char *what)
{
    switch (result < 0 ? -result : 0) {
    case 0:
    case EAGAIN:
    case EBUSY:
    case EINVAL:
    case ENOMEM:
    case ENOSPC:
    case ESTALE:
    case EUCLEAN:
    case EUSERS:
        return;
    default:
        fprintf(stderr, "%s answers %lld\n", what, (long long)result);
        abort();
    }
}

static void one_fault(struct region *region, struct input *input)
{
    const uint64_t offset = region_offset(region, input);
    const uint8_t how = input_u8(input);
    struct fault fault = {
        .offset = offset,
        .access = how & 1 ? ACCESS_WRITE : ACCESS_READ,
        .start = how & 2 ? offset & -PMD_SIZE : offset,
        .end = how & 4 ? (offset & -PMD_SIZE) + PMD_SIZE : offset + PAGE_SIZE,
        .skip = how & 8 ? (uint32_t)input_u64(input) : 0,
        .fill = how & 16 ? SPAN_PAGES : 1,
        .limit = how & 32 ? offset + PAGE_SIZE : UINT64_MAX,
    };

    const enum fault_verdict verdict = mm_fault(&region->mm, region->slot, &fault);
    /* A client relies on all of this for its next steps (resolve.c, objects.c). */
    if (verdict == FAULT_MAP &&
        (fault.start > offset || fault.end <= offset || fault.end > region->mm.size ||
         fault.start < fault.vma.start || fault.end > fault.vma.end ||
         (!fault.vma.object && fault.end - fault.start > PMD_SIZE) || fault.filled > SPAN_PAGES ||
         (fault.vma.flags & VMA_HUGE && (!fault.vma.object || fault.vma.start % PMD_SIZE)))) {
        fprintf(stderr, "a fault at %#llx is answered with [%#llx, %#llx)\n",
                (unsigned long long)offset, (unsigned long long)fault.start,
                (unsigned long long)fault.end);
        abort();
    }
}

static void change(struct region *region, struct input *input)
{
    struct mm *mm = &region->mm;
    const uint64_t a = region_offset(region, input), b = region_offset(region, input);
    const uint64_t start = a < b ? a : b, end = a < b ? b : a;
    const uint8_t how = input_u8(input);
    const struct mm_vma vma = {
        .start = start,
        .end = end,
        .flags = how >> 2 & VMA_PROT,
        .object = how >> 5 & 3,
    };

    /* Like the server, which never asks for an empty range. */
    if (start == end)
        return;
    switch (how & 3) {
    case 0:
        answered(hostmm_map(mm, vma), "map");
        break;
    case 1:
        answered(hostmm_unmap(mm, start, end), "unmap");
        break;
    case 2:
        answered(hostmm_protect(mm, start, end, vma.flags), "protect");
        break;
    default:
        (void)(hostmm_mapped(mm, start, end) || hostmm_has_objects(mm, start, end));
        (void)hostmm_has_exec(mm, start, end);
    }
}

static void look(struct region *region)
{
    struct mm *mm = &region->mm;
    struct mm_vma vmas[COPIED];
    struct mm_table tables[COPIED];
    struct mm_client clients[COPIED];
    uint64_t pages[COPIED];
    struct mshare_stat stat;

    answered(mm_stat(mm, region->mem_fd, &stat), "stat");
    answered(mm_vmas(mm, vmas, COPIED), "vmas");
    answered(mm_tables(mm, tables, COPIED), "tables");
    answered(mm_huge_pages(mm, pages, COPIED), "huge_pages");
    answered(mm_clients(mm, clients, COPIED), "clients");
    if (strlen(mm_owner_cgroup(mm)) >= MM_CGROUP_LEN || mm_owner_kind(mm) > OWNER_CREATOR)
        abort();
    for (int slot = -1; (slot = mm_poisoned(mm, (unsigned)slot + 1)) >= 0;)
        (void)(mm_client_pid(mm, (unsigned)slot) + mm_claim(mm, (unsigned)slot));
    (void)(mm_adopted(mm, region->slot) || mm_handed(mm, region->slot));
}

static void look_touched(struct region *region, struct input *input)
{
    const struct mm *mm = &region->mm;
    const uint64_t end = region_offset(region, input);
    uint64_t start = region_offset(region, input), stop, runs = 0;

    (void)mm_touched(mm, 0, MM_SLOTS, start, end);
    for (; touched_run(mm, region->slot, &start, end, &stop); start = stop)
        if (stop <= start || stop > end || runs++ > mm->size / PMD_SIZE)
            abort();
}

static void reap(struct region *region, struct input *input)
{
    const unsigned slot = input_u8(input) % 4;

    if (slot == 3)
        answered(slot_release(&region->mm, 1, input_u64(input)), "release");
    else
        answered(slot_reap(&region->mm, slot), "reap");
}

/* Goes on with what it finds, but in the old place, where the pages are mapped. */
static void reopen(struct region *region)
{
    struct mm again;
    const int fd = fcntl(region->mm.fd, F_DUPFD_CLOEXEC, 0);
    const int err = mm_open(&again, fd);

    answered(err, "open");
    if (err) {
        close(fd);
        return;
    }
    region->mm.fault_around = again.fault_around;
    region->mm.budget = again.budget;
    mm_close(&again);
}

/* A look at half a million frames takes as long as ten other inputs: it is an input's last step. */
static void after_all_frames(const struct region *region, struct input *input)
{
    if (region->mm.frames_max > FRAMES_LOOKED_AT_AGAIN)
        input->left = 0;
}

static void step(struct region *region, struct input *input)
{
    struct mm *mm = &region->mm;
    struct mm_audit audit;
    unsigned straggler;

    switch (input_u8(input) % 20) {
    case 0:
    case 1:
        one_fault(region, input);
        break;
    case 2:
    case 3:
        change(region, input);
        break;
    case 4:
        answered(hostmm_finish(mm, region->mem_fd), "finish");
        break;
    case 5:
        answered(hostmm_recover(mm, region->mem_fd), "recover");
        break;
    case 6:
        hostmm_abort(mm);
        break;
    case 7:
        answered(mm_audit(mm, &audit), "audit");
        after_all_frames(region, input);
        break;
    case 8:
        answered(mm_sweep(mm), "sweep");
        after_all_frames(region, input);
        break;
    case 9:
        look(region);
        break;
    case 10:
        look_touched(region, input);
        break;
    case 11:
        reap(region, input);
        break;
    case 12:
        answered(slot_claim(mm, 7, 1), "claim");
        break;
    case 13:
        answered(slot_grace(mm, &straggler), "grace");
        break;
    case 14:
        reopen(region);
        break;
    case 15:
        if (input_u8(input) & 1)
            slot_enter(mm, region->slot);
        else
            slot_leave(mm, region->slot);
        break;
    case 16:
        answered(mm_mend(mm), "mend");
        after_all_frames(region, input);
        break;
    default:
        region_scribble(region, input);
    }
}

/* A region with half a million frames takes its time, and shows little that others do not. */
static enum region_shape shape(uint8_t number)
{
    return number < 120 ? REGION_SMALL : number < 248 ? REGION_LARGE : REGION_HUGE;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct region region;

    region_make(&region, shape(input_u8(&input)));
    for (unsigned i = 0; i < STEPS_MAX && input.left; i++)
        step(&region, &input);
    return 0;
}
