/*
 * fuzz_client.c - the client's end of the control protocol, and its faults on a host mm that
 * anybody may have scribbled on. The library is used as in a program; only the server is not
 * real: the input decides what it sends.
 *
 *   mshare_attach()      replies to ATTACH and READY: correct ones, or any, with any descriptors
 *   steps                a message to the service thread; a scribble; an access to the window
 *   mshare_detach()      must succeed
 *
 * After each input the process has as many descriptors as before, and the service thread must
 * have answered in time. Accesses are made by system calls of another thread: instead of a
 * signal they get EFAULT, and one that nobody answers ends with the window.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/protocol.h"
#include "msharefs.h"
#include "region.h"

#define STEPS_MAX 24
#define GIVEN_MAX 6 /* descriptors with one message: twice as many as there may be */
#define ANSWER_MS 5000
#define LOOK_US 200 /* an access that takes longer may have to wait */
#define OBJECT_BYTES (3 * PMD_SIZE + 100)
#define BUDGET_SPANS (BUDGET_MIN_BYTES / PAGE_SIZE)
#define SYNC_SEQ 0x53594e43ull /* "SYNC" */

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

static struct {
    struct region region;
    struct input *input;
    int server; /* our end; -1: closed */
    int device, object, other, pipe[2], zero;
    unsigned objects; /* how requests for objects are answered */
} fuzz = {.server = -1};

static void must(bool done, const char *what)
{
    if (done)
        return;
    fprintf(stderr, "fuzz_client: %s (errno: %s)\n", what, strerror(errno));
    abort();
}

/* The server */

static void give(const struct msg *msg, size_t bytes, const int *fds, unsigned count)
{
    char space[CMSG_SPACE(GIVEN_MAX * sizeof(int))] = {0};
    struct iovec part = {(void *)msg, bytes};
    struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1};

    if (count) {
        head.msg_control = space;
        head.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&head);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, count * sizeof(int));
    }
    /* A client that is gone, or does not read, does not concern the server. */
    sendmsg(fuzz.server, &head, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void hang_up(void)
{
    if (fuzz.server >= 0)
        close(fuzz.server);
    fuzz.server = -1;
}

static int any_descriptor(struct input *input)
{
    const int all[] = {
        fuzz.region.mm.fd, fuzz.region.mem_fd, fuzz.device, fuzz.object, fuzz.other, fuzz.server,
    };

    return all[input_u8(input) % (sizeof all / sizeof *all)];
}

static uint64_t any_number(struct input *input)
{
    const uint8_t kind = input_u8(input);

    return kind < 128   ? region_offset(&fuzz.region, input)
           : kind < 192 ? input_u8(input)
                        : input_u64(input);
}

/* Changes a correct message, here and there. */
static void damage(struct msg *msg, int fds[GIVEN_MAX], unsigned *count, size_t *bytes)
{
    struct input *input = fuzz.input;

    for (unsigned changes = input_u8(input) % 4; changes; changes--)
        switch (input_u8(input) % 8) {
        case 0:
            msg->op = input_u8(input);
            break;
        case 1:
            msg->result = -(int32_t)input_u8(input);
            break;
        case 2:
            msg->seq = any_number(input);
            break;
        case 3:
        case 4:
            msg->arg[input_u8(input) % 5] = any_number(input);
            break;
        case 5:
            msg->text[input_u8(input) % MSG_TEXT] = (char)input_u8(input);
            break;
        case 6:
            *count = input_u8(input) % (GIVEN_MAX + 1);
            for (unsigned i = 0; i < *count; i++)
                fds[i] = any_descriptor(input);
            break;
        case 7:
            *bytes = input_u8(input) % sizeof *msg;
        }
}

static void say(struct msg msg, const int *right, unsigned count)
{
    size_t bytes = sizeof msg;
    int fds[GIVEN_MAX] = {-1};

    for (unsigned i = 0; i < count; i++)
        fds[i] = right[i];
    damage(&msg, fds, &count, &bytes);
    if (bytes)
        give(&msg, bytes, fds, count);
    else /* a packet of no bytes looks like the end */
        hang_up();
}

/* The replies to ATTACH and READY are there before the requests are sent. */
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list list;

    va_start(list, request);
    struct mshare_connect *ticket = va_arg(list, void *);
    va_end(list);
    if (request != MSHAREFS_CONNECT)
        return __real_ioctl(fd, request, ticket);

    const struct mm *mm = &fuzz.region.mm;
    const int objects[] = {mm->fd, fuzz.region.mem_fd, fuzz.device};
    struct msg attach = {.op = MSG_REPLY, .arg = {mm->size, mm->quantum}};
    const uint8_t damaged = input_u8(fuzz.input);

    fuzz.server = fcntl(ticket->fd, F_DUPFD_CLOEXEC, 0);
    strcpy(attach.text, "/nonexistent/control");
    if (damaged & 1)
        say(attach, objects, 3);
    else
        give(&attach, sizeof attach, objects, 3);
    if (damaged & 2)
        say((struct msg){.op = MSG_REPLY}, NULL, 0);
    else
        give(&(struct msg){.op = MSG_REPLY}, sizeof attach, NULL, 0);
    return 0;
}

static void answer_object(const struct msg *asked)
{
    struct msg msg = {.op = MSG_REPLY, .seq = asked->seq};

    switch (fuzz.objects % 4) {
    case 0:
        give(&msg, sizeof msg, &fuzz.object, 1);
        break;
    case 1:
        msg.result = -ENOENT;
        give(&msg, sizeof msg, NULL, 0);
        break;
    case 2:
        give(&msg, sizeof msg, NULL, 0);
        break;
    default: /* not at all */
        break;
    }
}

/* The signal of libFuzzer's timer may come meanwhile. */
static bool wait_for_message(void)
{
    struct pollfd ready = {fuzz.server, POLLIN, 0};
    int count;

    do
        count = poll(&ready, 1, ANSWER_MS);
    while (count < 0 && errno == EINTR);
    return count == 1;
}

/* Reads the client's messages until it has answered everything that it was sent, or is gone. */
static void settle(void)
{
    const struct msg last = {.op = MSG_REARM, .seq = SYNC_SEQ};
    struct msg msg;

    if (fuzz.server < 0)
        return;
    give(&last, sizeof last, NULL, 0);
    for (;;) {
        must(wait_for_message(), "the service thread does not answer");
        const ssize_t got = recv(fuzz.server, &msg, sizeof msg, 0);
        if (got <= 0 || (msg.op == MSG_REPLY && msg.seq == SYNC_SEQ))
            return;
        if (msg.op == MSG_OBJECT)
            answer_object(&msg);
    }
}

/* Accesses */

static struct {
    sem_t go, done;
    int state; /* where in the kernel the thread is */
    void *address;
    bool write, pending;
} access_;

static void *make_accesses(void *unused)
{
    char byte;

    access_.state = open("/proc/thread-self/wchan", O_RDONLY | O_CLOEXEC);
    must(access_.state >= 0, "/proc/thread-self/wchan");
    sem_post(&access_.done);
    for (;;) {
        sem_wait(&access_.go);
        if (access_.write)
            syscall(SYS_read, fuzz.zero, access_.address, 1);
        else if (syscall(SYS_write, fuzz.pipe[1], access_.address, 1) == 1)
            syscall(SYS_read, fuzz.pipe[0], &byte, 1);
        sem_post(&access_.done);
    }
    return unused;
}

static bool wait_access(uint64_t us)
{
    struct timespec end;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_nsec += (long)(us % 1000000 * 1000);
    end.tv_sec += (time_t)(us / 1000000) + end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    while (sem_timedwait(&access_.done, &end))
        if (errno != EINTR)
            return false;
    return true;
}

/* Whether the access is in a fault that the service thread has, or will be told of. */
static bool access_waits(void)
{
    char where[32] = "";

    must(pread(access_.state, where, sizeof where - 1, 0) >= 0, "wchan");
    return !strncmp(where, "handle_userfault", strlen("handle_userfault"));
}

/* Until the access is over, or waits for a page that is busy, or for an object. In the second
 * round that it has answered, the service thread has seen the fault. */
static void access_window(uint8_t *base, uint64_t offset, bool write)
{
    if (access_.pending)
        return;
    access_.address = base + offset % fuzz.region.mm.size;
    access_.write = write;
    sem_post(&access_.go);
    for (unsigned rounds = 0; rounds < 2 || !access_waits();) {
        if (wait_access(LOOK_US))
            return;
        if (!access_waits())
            continue;
        settle();
        rounds++;
    }
    access_.pending = !wait_access(LOOK_US);
}

/* The rest */

static void step(uint8_t *base)
{
    struct input *input = fuzz.input;

    switch (input_u8(input) % 8) {
    case 0:
    case 1:
        region_scribble(&fuzz.region, input);
        break;
    case 2: {
        const uint32_t ops[] = {MSG_REARM, MSG_REVOKE, MSG_ARRANGE, MSG_REPLY};

        say((struct msg){.op = ops[input_u8(input) % 4],
                         .seq = SEQ_OBJECT | input_u8(input) % 4,
                         .arg = {any_number(input), any_number(input), input_u8(input)}},
            &fuzz.object, input_u8(input) & 1);
        break;
    }
    case 3:
        settle();
        break;
    case 4:
        fuzz.objects = input_u8(input);
        break;
    case 5:
        if (input_u8(input) == 255)
            hang_up();
        break;
    case 6: /* more page tables than a budget allows */
        mshare_budget(base, input_u8(input) & 1 ? BUDGET_MIN_BYTES : 0);
        for (unsigned i = 0, count = input_u8(input) & 1 ? BUDGET_SPANS * 5 / 4 : 2; i < count; i++)
            access_window(base, i * PMD_SIZE, input_u8(input) & 1);
        break;
    default: {
        const uint64_t offset = region_offset(&fuzz.region, input);

        access_window(base, offset, input_u8(input) & 1);
    }
    }
}

static off_t descriptors(void)
{
    struct stat directory;

    must(!stat("/proc/self/fd", &directory), "/proc/self/fd");
    return directory.st_size; /* how many there are: Linux 6.2 */
}

/* Answers DETACH with anything, and then correctly. */
static struct {
    sem_t go, done;
} goodbye;

static void *say_goodbye(void *unused)
{
    const struct msg right = {.op = MSG_REPLY, .seq = 1};

    for (;; sem_post(&goodbye.done)) {
        struct msg msg = {0};

        sem_wait(&goodbye.go);
        while (msg.op != MSG_DETACH && recv(fuzz.server, &msg, sizeof msg, 0) > 0)
            ;
        if (msg.op != MSG_DETACH)
            continue;
        if (input_u8(fuzz.input) & 1)
            say(right, NULL, 0);
        give(&right, sizeof right, NULL, 0);
    }
    return unused;
}

static void prepare(void)
{
    pthread_t thread;

    fuzz.device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    must(fuzz.device >= 0, "cannot open /dev/userfaultfd: run this as root");
    fuzz.object = memfd_create("fuzz-object", MFD_CLOEXEC);
    fuzz.other = open("/dev/null", O_RDWR | O_CLOEXEC);
    fuzz.zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    must(fuzz.object >= 0 && fuzz.other >= 0 && fuzz.zero >= 0, "open");
    must(!pipe2(fuzz.pipe, O_CLOEXEC), "pipe");
    sem_init(&access_.go, 0, 0);
    sem_init(&access_.done, 0, 0);
    sem_init(&goodbye.go, 0, 0);
    sem_init(&goodbye.done, 0, 0);
    must(!pthread_create(&thread, NULL, make_accesses, NULL), "pthread_create");
    must(!pthread_create(&thread, NULL, say_goodbye, NULL), "pthread_create");
    must(wait_access(ANSWER_MS * 1000), "a thread does not start");
}

static void wait_goodbye(void)
{
    while (sem_wait(&goodbye.done))
        must(errno == EINTR, "sem_wait");
}

static void detach(uint8_t *base)
{
    const bool asks = fuzz.server >= 0;

    settle();
    if (asks)
        sem_post(&goodbye.go);
    must(!mshare_detach(base), "mshare_detach");
    if (asks)
        wait_goodbye();
    if (access_.pending)
        must(wait_access(ANSWER_MS * 1000), "an access outlives the window");
    access_.pending = false;
}

static void one(struct input *input)
{
    static bool started; /* the first input has made the service thread's descriptors */

    fuzz.input = input;
    fuzz.objects = 0;
    region_make(&fuzz.region, input_u8(input) % REGION_HUGE);
    const off_t before = descriptors();
    must(!ftruncate(fuzz.object, (off_t)OBJECT_BYTES), "ftruncate");
    for (unsigned scribbles = input_u8(input) % 4; scribbles; scribbles--)
        region_scribble(&fuzz.region, input);
    void *base = mshare_attach(fuzz.region.mem_fd, 0, 0, NULL, 0);
    if (base != MAP_FAILED) {
        for (unsigned i = 0; i < STEPS_MAX && input->left; i++)
            step(base);
        detach(base);
    }
    hang_up();
    must(!started || descriptors() == before, "there are more descriptors than before, or fewer");
    started = true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    /* A shadow would have none of what the fuzzer looks at. */
    must(!setenv("MSHAREFS_CLIENT", "thread", 1), "setenv");
    prepare();
    one(&(struct input){NULL, 0}); /* an input that attaches, so that the service thread exists */
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    one(&(struct input){data, size});
    return 0;
}
