/*
 * forker.c REGION OTHER: a program whose own lock guards its data in a region, and is held over
 * fork(2).
 *
 *   main                            thread
 *   attach                          takes the lock
 *   fork: waits for the lock        touches the region, ends another attachment, unlocks
 *   the child does the same
 */
#include <assert.h>
#include <fcntl.h>
#include <msharefs.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sem_t held, wanted;
static volatile uint8_t *base;
static void *other;

static void before(void)
{
    sem_post(&wanted);
    pthread_mutex_lock(&lock);
}

static void after(void)
{
    base[0]++; /* in the child, too */
    pthread_mutex_unlock(&lock);
}

static void *worker(void *unused)
{
    pthread_mutex_lock(&lock);
    sem_post(&held);
    sem_wait(&wanted);
    base[1 << 20] = 1; /* a page that nobody has touched */
    assert(!mshare_detach(other));
    pthread_mutex_unlock(&lock);
    return unused;
}

static void *attach(const char *path)
{
    int fd = open(path, O_RDWR);
    void *got = mshare_attach(fd, 0, 0, NULL, 0);

    assert(fd >= 0 && got != MAP_FAILED);
    return got;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int status;

    assert(argc == 3);
    sem_init(&held, 0, 0);
    sem_init(&wanted, 0, 0);
    pthread_atfork(before, after, after); /* before there is anything to attach */
    base = attach(argv[1]);
    other = attach(argv[2]);
    assert(!pthread_create(&thread, NULL, worker, NULL));
    sem_wait(&held);
    pid_t child = fork();
    if (!child)
        _exit(base[1 << 20] != 1);
    assert(child > 0 && waitpid(child, &status, 0) == child && !status);
    pthread_join(thread, NULL);
    return base[0] != 2;
}
