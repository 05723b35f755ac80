/*
 * cases.c - what the verbs on a range of memory answer and do, case by case (arguments: range.h).
 *
 * Prints one line for each case. All must print the same. Of huge pages: only those of advice.
 */
#include "range.h"

static const struct {
    int number;
    const char *name;
} advices[] = {
    {0, "NORMAL"},         {1, "RANDOM"},          {2, "SEQUENTIAL"},
    {3, "WILLNEED"},       {4, "DONTNEED"},        {8, "FREE"},
    {9, "REMOVE"},         {14, "HUGEPAGE"},       {15, "NOHUGEPAGE"},
    {18, "WIPEONFORK"},    {20, "COLD"},           {21, "PAGEOUT"},
    {22, "POPULATE_READ"}, {23, "POPULATE_WRITE"}, {24, "DONTNEED_LOCKED"},
    {25, "COLLAPSE"},      {102, "GUARD_INSTALL"}, {103, "GUARD_REMOVE"},
    {77, "of no meaning"},
};
#define ADVICES (sizeof advices / sizeof *advices)

/* On which memory each advice is possible, and that the bytes are right then. */
static void advice_cases(int advice, const char *name)
{
    fresh();
    printf("%s:", name);
    printf(" rw %s", said(advise(0, 8 * PAGE, advice)));
    show_pages(0, 9);
    if (PAGE != HUGE_PAGE) /* Linux looks whether anything changes before it refuses to split one */
        printf(" one byte %s", said(advise(0, 1, advice)));
    printf(" nothing %s", said(advise(0, 0, advice)));
    printf(" ro %s", said(advise(16 * PAGE, 4 * PAGE, advice)));
    printf(" none %s", said(advise(20 * PAGE, 4 * PAGE, advice)));
    printf(" misaligned %s", said(advise(1, PAGE, advice)));
    printf(" hole %s", said(advise(24 * PAGE, PAGE, advice)));
    printf(" into a hole %s", said(advise(22 * PAGE, 4 * PAGE, advice)));
    printf(" over a hole %s", said(advise(12 * PAGE, 24 * PAGE, advice)));
    printf("\n");
}

static void locked_cases(int advice, const char *name)
{
    fresh();
    if (lock(0, 4 * PAGE, 0))
        die("lock");
    printf("%s, locked:", name);
    printf(" all of it %s", said(advise(0, 4 * PAGE, advice)));
    printf(" and more %s", said(advise(0, 8 * PAGE, advice)));
    if (unlock(0, 4 * PAGE))
        die("unlock");
    printf(" unlocked %s\n", said(advise(0, 4 * PAGE, advice)));
}

static void lock_cases(void)
{
    unsigned char vec[4];

    fresh();
    printf("lock:");
    printf(" rw %s", said(lock(32 * PAGE, 4 * PAGE, 0)));
    query(32 * PAGE, 4 * PAGE, vec);
    printf(" in memory %d%d%d%d", vec[0] & 1, vec[1] & 1, vec[2] & 1, vec[3] & 1);
    printf(" ro %s", said(lock(16 * PAGE, 4 * PAGE, 0)));
    printf(" none %s", said(lock(20 * PAGE, 4 * PAGE, 0)));
    printf(" hole %s", said(lock(24 * PAGE, PAGE, 0)));
    printf(" over a hole %s", said(lock(12 * PAGE, 24 * PAGE, 0)));
    printf(" nothing %s", said(lock(0, 0, 0)));
    printf(" flags %s", said(lock(0, PAGE, 6)));
    printf(" unlock: %s", said(unlock(0, 16 * PAGE)));
    printf(" hole %s", said(unlock(24 * PAGE, PAGE)));
    printf(" never locked %s\n", said(unlock(32 * PAGE, 16 * PAGE)));
}

static void limited_cases(void)
{
    const struct rlimit some = {8 * PAGE, 8 * PAGE}, none = {0, 0};

    fresh();
    if (setrlimit(RLIMIT_MEMLOCK, &some))
        die("setrlimit");
    printf("lock, limited: all %s", said(lock(0, 8 * PAGE, 0)));
    printf(" again %s", said(lock(0, 8 * PAGE, 0)));
    printf(" one more %s", said(lock(8 * PAGE, PAGE, 0)));
    printf(" unlock %s", said(unlock(0, PAGE)));
    printf(" now one %s", said(lock(8 * PAGE, PAGE, 0)));
    printf(" unmapped %s", said(unmap(1, 8)));
    printf(" then %s", said(lock(32 * PAGE, 8 * PAGE, 0)));
    if (setrlimit(RLIMIT_MEMLOCK, &none))
        die("setrlimit");
    printf(" nothing permitted %s", said(lock(9 * PAGE, PAGE, 0)));
    printf(" and flags %s", said(lock(9 * PAGE, PAGE, 6)));
    printf(" unlock %s\n", said(unlock(32 * PAGE, 8 * PAGE)));
}

static void sync_cases(void)
{
    fresh();
    printf("sync:");
    for (int flags = 0; flags < 8; flags++)
        printf(" %d %s", flags, said(sync_range(0, 8 * PAGE, flags)));
    printf(" 8 %s", said(sync_range(0, PAGE, 8)));
    printf(" misaligned %s", said(sync_range(1, PAGE, MS_SYNC)));
    printf(" ro %s", said(sync_range(16 * PAGE, 8 * PAGE, MS_SYNC)));
    printf(" hole %s", said(sync_range(24 * PAGE, PAGE, MS_SYNC)));
    printf(" over a hole %s", said(sync_range(12 * PAGE, 24 * PAGE, MS_ASYNC)));
    printf(" nothing %s", said(sync_range(0, 0, MS_SYNC)));
    if (lock(0, PAGE, 0))
        die("lock");
    printf(" locked %s", said(sync_range(0, PAGE, MS_SYNC)));
    printf(" and invalidated %s", said(sync_range(0, PAGE, MS_INVALIDATE)));
    printf(" with more %s\n", said(sync_range(0, 8 * PAGE, MS_INVALIDATE)));
    unlock(0, PAGE);
}

static void query_cases(void)
{
    unsigned char vec[PAGES];

    fresh();
    memset(vec, 0, sizeof vec);
    printf("query: rw %s ", said(query(0, 16 * PAGE, vec)));
    for (unsigned i = 0; i < 16; i++)
        printf("%d", vec[i] & 1);
    printf(" one byte %s", said(query(0, 1, vec)));
    printf(" none %s", said(query(20 * PAGE, 4 * PAGE, vec)));
    printf(" misaligned %s", said(query(1, PAGE, vec)));
    printf(" hole %s", said(query(24 * PAGE, PAGE, vec)));
    printf(" over a hole %s", said(query(12 * PAGE, 24 * PAGE, vec)));
    printf(" nothing %s", said(query(0, 0, vec)));
    advise(0, 4 * PAGE, 9); /* REMOVE */
    query(0, 16 * PAGE, vec);
    printf(" removed ");
    for (unsigned i = 0; i < 16; i++)
        printf("%d", vec[i] & 1);
    printf("\n");
}

static void mbind_cases(void)
{
    fresh();
    printf("mbind:");
    for (int mode = 0; mode < 8; mode++) {
        printf(" %d no node %s", mode, said(bind_range(0, 4 * PAGE, mode, 0, 0, 0)));
        printf(" node 0 %s", said(bind_range(0, 4 * PAGE, mode, 1, 64, 0)));
    }
    printf(" node 40 %s", said(bind_range(0, PAGE, 2, 1ul << 40, 64, 0)));
    printf(" flags %s", said(bind_range(0, PAGE, 2, 1, 64, 64)));
    printf(" move %s", said(bind_range(0, 8 * PAGE, 2, 1, 64, 2)));
    printf(" move all %s", said(bind_range(0, 8 * PAGE, 2, 1, 64, 4)));
    printf(" strict %s", said(bind_range(0, 8 * PAGE, 2, 1, 64, 1)));
    printf(" misaligned %s", said(bind_range(1, PAGE, 2, 1, 64, 0)));
    printf(" nothing %s", said(bind_range(0, 0, 2, 1, 64, 0)));
    printf(" default %s", said(bind_range(0, SIZE / 64, 0, 0, 0, 0)));
    show_pages(0, 3);
    printf("\n");
}

/* Two things are wrong at once: which of them is told. */
static void order_cases(void)
{
    fresh();
    printf("advise, two errors: unknown, misaligned %s", said(advise(1, PAGE, 77)));
    printf(" unknown, hole %s", said(advise(24 * PAGE, PAGE, 77)));
    printf(" unknown, nothing %s", said(advise(0, 0, 77)));
    printf(" misaligned, nothing %s", said(advise(1, 0, 4)));
    printf(" misaligned, hole %s", said(advise(24 * PAGE + 1, PAGE, 4)));
    printf(" private, hole %s", said(advise(12 * PAGE, 24 * PAGE, 8)));
    printf(" hole, private %s", said(advise(24 * PAGE, 24 * PAGE, 8)));
    printf(" read-only, hole %s", said(advise(16 * PAGE, 10 * PAGE, 23)));
    printf(" hole, no access %s", said(advise(28 * PAGE, 6 * PAGE, 23)));
    if (lock(32 * PAGE, 2 * PAGE, 0))
        die("lock");
    printf(" locked, hole %s", said(advise(33 * PAGE, 20 * PAGE, 21)));
    printf(" hole, locked %s", said(advise(28 * PAGE, 6 * PAGE, 21)));
    printf(" hole, locked, REMOVE %s\n", said(advise(28 * PAGE, 6 * PAGE, 9)));

    printf("lock, two errors: flags, hole %s", said(lock(24 * PAGE, PAGE, 6)));
    printf(" flags, nothing %s\n", said(lock(0, 0, 6)));

    printf("sync, two errors: flags, misaligned %s", said(sync_range(1, PAGE, 8)));
    printf(" flags, hole %s", said(sync_range(24 * PAGE, PAGE, 8)));
    printf(" flags, nothing %s", said(sync_range(0, 0, 8)));
    printf(" both ways, misaligned %s", said(sync_range(1, PAGE, MS_SYNC | MS_ASYNC)));
    printf(" both ways, hole %s", said(sync_range(24 * PAGE, PAGE, MS_SYNC | MS_ASYNC)));
    printf(" misaligned, nothing %s", said(sync_range(1, 0, MS_SYNC)));
    printf(" locked, hole %s", said(sync_range(33 * PAGE, 20 * PAGE, MS_INVALIDATE)));
    printf(" hole, locked %s\n", said(sync_range(28 * PAGE, 6 * PAGE, MS_INVALIDATE)));

    printf("mbind, two errors: mode, misaligned %s", said(bind_range(1, PAGE, 9, 1, 64, 0)));
    printf(" mode, hole %s", said(bind_range(24 * PAGE, PAGE, 9, 1, 64, 0)));
    printf(" mode, nothing %s", said(bind_range(0, 0, 9, 1, 64, 0)));
    printf(" flags, hole %s", said(bind_range(24 * PAGE, PAGE, 2, 1, 64, 64)));
    printf(" misaligned, hole %s", said(bind_range(24 * PAGE + 1, PAGE, 2, 1, 64, 0)));
    printf(" no such node, hole %s\n", said(bind_range(24 * PAGE, PAGE, 2, 1ul << 40, 64, 0)));

    printf("protect, two errors: bits, misaligned %s", said(protect_bytes(1, PAGE, 0x10)));
    printf(" bits, hole %s", said(protect_bytes(24 * PAGE, PAGE, 0x10)));
    printf(" bits, nothing %s", said(protect_bytes(0, 0, 0x10)));
    printf(" misaligned, hole %s", said(protect_bytes(24 * PAGE + 1, PAGE, PROT_READ)));
    printf(" misaligned, nothing %s\n", said(protect_bytes(1, 0, PROT_READ)));

    printf("seal, two errors: misaligned, hole %s", said(seal(24 * PAGE + 1, PAGE)));
    printf(" misaligned, nothing %s\n", said(seal(1, 0)));
}

/* What is sealed stays so: this comes last. */
static void seal_cases(void)
{
    fresh();
    printf("seal: misaligned %s", said(seal(1, PAGE)));
    printf(" hole %s", said(seal(24 * PAGE, PAGE)));
    printf(" over a hole %s", said(seal(12 * PAGE, 24 * PAGE)));
    printf(" nothing %s", said(seal(0, 0)));
    printf(" then unmap %s", said(unmap(15, 1)));
    printf(" one page %s", said(seal(4 * PAGE, PAGE)));
    printf(" again %s", said(seal(4 * PAGE, PAGE)));
    printf(" unmap %s", said(unmap(4, 1)));
    printf(" with more %s", said(unmap(2, 4)));
    printf(" before %s", said(unmap(3, 1)));
    printf(" protect %s", said(protect(4, 1, PROT_READ)));
    printf(" with more %s", said(protect(4, 4, PROT_READ)));
    printf(" over a hole after %s", said(protect(4, 24, PROT_READ)));
    printf(" over a hole before %s", said(protect(3, 4, PROT_READ)));
    printf(" replace %s", said(map(4, 1, PROT_READ)));
    printf(" with more %s", said(map(2, 4, PROT_READ)));
    printf(" advise %s", said(advise(4 * PAGE, PAGE, 4)));
    printf(" lock %s", said(lock(4 * PAGE, PAGE, 0)));
    printf(" unlock %s", said(unlock(4 * PAGE, PAGE)));
    printf(" protect, bits %s", said(protect(4, 1, 0x10)));
    printf(" misaligned %s", said(protect_bytes(4 * PAGE + 1, PAGE, PROT_READ)));
    show_pages(0, 8);
    touch(4, true);
    printf("\n");
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    for (unsigned i = 0; i < ADVICES; i++)
        advice_cases(advices[i].number, advices[i].name);
    if (PAGE == HUGE_PAGE) /* a lock is nothing to pages that never leave memory */
        return 0;
    for (unsigned i = 0; i < ADVICES; i++)
        locked_cases(advices[i].number, advices[i].name);
    lock_cases();
    sync_cases();
    query_cases();
    mbind_cases();
    order_cases();
    if (!geteuid() && setresuid(65534, 65534, 65534)) /* who may not lock what he likes */
        die("setresuid");
    limited_cases();
    seal_cases();
    return 0;
}
