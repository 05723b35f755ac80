/*
 * A producer and a consumer that share a ring in a region. They have no common parent:
 * each opens the region by its name.
 *
 *     ./ring /mnt/ring consume &
 *     ./ring /mnt/ring produce 1000
 *
 * The consumer prints the sum of what it has got.
 */
#include <fcntl.h>
#include <msharefs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 1024
#define SIZE (2 << 20)

struct ring {
    _Atomic unsigned long written, taken;
    _Atomic int done;
    unsigned long slots[SLOTS];
};

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

/* The region. Whoever comes first sizes it and maps memory, while the lock keeps the other out. */
static struct ring *attach(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    void *memory = MAP_FAILED;
    struct stat st;

    if (fd < 0)
        return NULL;
    if (!flock(fd, LOCK_EX) && !fstat(fd, &st) &&
        (st.st_size ||
         (!ftruncate(fd, SIZE) && !mshare_map(fd, 0, SIZE, PROT_READ | PROT_WRITE,
                                              MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, -1, 0))))
        memory = mshare_attach(fd, 0, 0, NULL, 0);
    close(fd); /* the lock goes, the attachment stays */
    return memory == MAP_FAILED ? NULL : memory;
}

static void produce(struct ring *ring, unsigned long count)
{
    for (unsigned long number = 1; number <= count; number++) {
        while (ring->written - ring->taken == SLOTS)
            nap();
        ring->slots[ring->written % SLOTS] = number;
        ring->written++;
    }
    ring->done = 1;
}

static unsigned long consume(struct ring *ring)
{
    unsigned long sum = 0;

    for (;;) {
        int done = ring->done;

        if (ring->taken == ring->written) {
            if (done)
                return sum;
            nap();
            continue;
        }
        sum += ring->slots[ring->taken % SLOTS];
        ring->taken++;
    }
}

int main(int argc, char **argv)
{
    struct ring *ring = argc > 2 ? attach(argv[1]) : NULL;

    if (!ring)
        return perror(argc > 2 ? argv[1] : "usage: ring REGION produce COUNT | consume"), 1;
    if (!strcmp(argv[2], "produce"))
        produce(ring, strtoul(argc > 3 ? argv[3] : "1000", NULL, 10));
    else
        printf("%lu\n", consume(ring));
    return mshare_detach(ring) ? 1 : 0;
}
