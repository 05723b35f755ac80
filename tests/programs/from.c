/*
 * from.c - threads that store into private memory, and read it, while it becomes memory of a
 * region. Uses only the public header.
 *
 *   from PATH    a new region of a mount whose quantum is 2 MiB
 *
 * Says "done" if no store was lost, and nobody has got a signal or read a byte that was not there.
 */
#include <fcntl.h>
#include <msharefs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SIZE (2ul << 20)
#define PAGE 4096ul
#define WRITERS 2u
#define PLACE ((char *)(1ul << 45))
#define CHECK(what)                                            \
    do {                                                       \
        if (!(what)) {                                         \
            fprintf(stderr, "line %d: %s\n", __LINE__, #what); \
            exit(1);                                           \
        }                                                      \
    } while (0)

static volatile _Atomic unsigned long *const words = (void *)PLACE;
static _Atomic int ending;
static _Atomic unsigned long stored[WRITERS]; /* how many words each has stored */

static volatile _Atomic unsigned long *word(unsigned writer, unsigned long number)
{
    return words + number % (SIZE / PAGE) * (PAGE / sizeof *words) + 1 + writer;
}

/* Stores into one page after the other, each time a greater number; looks that it is there. */
static void *write_words(void *arg)
{
    const unsigned writer = (unsigned)(size_t)arg;
    unsigned long number = 0;

    while (!ending) {
        *word(writer, number) = number + 1;
        CHECK(*word(writer, number) == number + 1);
        number++;
        stored[writer] = number;
    }
    return NULL;
}

/* The first word of each page is its number, and stays. */
static void *read_words(void *arg)
{
    while (!ending)
        for (unsigned long page = 0; page < SIZE / PAGE; page++)
            CHECK(words[page * (PAGE / sizeof *words)] == page + 1);
    return arg;
}

int main(int argc, char **argv)
{
    const int from = MAP_SHARED | MAP_FIXED | (int)MSHARE_MAP_FROM;
    const int fd = open(argc > 1 ? argv[1] : "", O_RDWR | O_CREAT | O_EXCL, 0600);
    const unsigned long pages = SIZE / PAGE;
    pthread_t threads[WRITERS + 1];
    unsigned long before;

    CHECK(fd >= 0 && !ftruncate(fd, SIZE));
    CHECK(mmap(PLACE, SIZE, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == PLACE);
    for (unsigned long page = 0; page < pages; page++)
        words[page * (PAGE / sizeof *words)] = page + 1;
    for (size_t i = 0; i < WRITERS; i++)
        CHECK(!pthread_create(&threads[i], NULL, write_words, (void *)i));
    CHECK(!pthread_create(&threads[WRITERS], NULL, read_words, NULL));
    while (!stored[0] || !stored[1])
        sched_yield();
    CHECK(!mshare_map(fd, 0, SIZE, PROT_READ | PROT_WRITE, from, -1, (off_t)PLACE));
    before = stored[0];
    while (stored[0] == before) /* they go on in the region */
        sched_yield();
    ending = 1;
    for (unsigned i = 0; i <= WRITERS; i++)
        CHECK(!pthread_join(threads[i], NULL));
    /* The last store into each page is there, from before and from after. */
    for (unsigned writer = 0; writer < WRITERS; writer++)
        for (unsigned long back = 1; back <= pages && back <= stored[writer]; back++)
            CHECK(*word(writer, stored[writer] - back) == stored[writer] - back + 1);
    CHECK(!mshare_detach(PLACE));
    puts("done");
    return 0;
}
