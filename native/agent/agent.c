/*
 * agent.c - a process whose every system call a test decides.
 *
 *   agent ADDRESS   connects to the abstract AF_UNIX socket ADDRESS, says "PID TID POOL" and obeys
 *
 * A request is one packet of words, separated by 0x1f; so is the answer. POOL is the address of a
 * MiB of memory for arguments of system calls.
 *
 *   call FUNCTION ARG...   a function of any library of the program: result and errno. An argument
 *                          is a number, or 's' and a string, or 'x' and bytes in hexadecimal that
 *                          the call may change
 *   load ADDRESS           one byte, or the signal that came: "SIGSEGV MAPERR 7f0000000000"
 *   store ADDRESS BYTE     "ok", or the signal that came
 *   run ADDRESS            calls the code there
 *   get ADDRESS COUNT      bytes in hexadecimal
 *   put ADDRESS HEX
 *   signals                how often SIGXFSZ came
 *   fork, thread           one more agent, which connects as the first did
 *   fork HOW               the same by _Fork(3), clone(3), or clone(2) by syscall(2)
 *   vfork ADDRESS BYTE     a child that stores a byte and ends; its result
 *   exec                   this program anew, in this process
 *   leave                  ends this thread only
 *   exit STATUS
 *
 * It knows nothing of msharefs: it calls the C library, or the library preloaded over that.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS 16
#define PACKET 65536
#define SEPARATOR '\x1f'

static const char *address;
static uint8_t pool[1 << 20] __attribute__((aligned(4096)));
static volatile sig_atomic_t file_size_signals;
static __thread sigjmp_buf escape;
static __thread volatile sig_atomic_t guarded;
static __thread siginfo_t caught;

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (!guarded) { /* an error of our own: die of it */
        signal(number, SIG_DFL);
        return;
    }
    caught = *info;
    siglongjmp(escape, 1);
}

static void on_file_size(int number)
{
    (void)number;
    file_size_signals++;
}

static const char *fault_name(void)
{
    static const char *const segv[] = {"?", "MAPERR", "ACCERR", "BNDERR", "PKUERR"};
    static const char *const bus[] = {"?", "ADRALN", "ADRERR", "OBJERR", "MCEERR"};
    unsigned code = (unsigned)caught.si_code <= 4 ? (unsigned)caught.si_code : 0;

    return caught.si_signo == SIGBUS ? bus[code] : segv[code];
}

enum access { LOAD, STORE, RUN };

/* Makes the access and writes down the result. */
static void touch(enum access access, volatile uint8_t *at, uint8_t byte, char *answer)
{
    volatile uint8_t value = byte;

    if (sigsetjmp(escape, 1)) {
        guarded = 0;
        sprintf(answer, "%s %s %lx", caught.si_signo == SIGBUS ? "SIGBUS" : "SIGSEGV", fault_name(),
                (unsigned long)caught.si_addr);
        return;
    }
    guarded = 1;
    if (access == LOAD)
        value = *at;
    else if (access == STORE)
        *at = value;
    else
        ((void (*)(void))(uintptr_t)at)();
    guarded = 0;
    sprintf(answer, "%u", value);
}

static uint64_t number(const char *word) { return strtoull(word, NULL, 0); }

static size_t from_hex(const char *text, uint8_t *bytes)
{
    size_t count = strlen(text) / 2;

    for (size_t i = 0; i < count; i++)
        sscanf(text + 2 * i, "%2hhx", &bytes[i]);
    return count;
}

static void to_hex(const uint8_t *bytes, size_t count, char *text)
{
    *text = 0;
    for (size_t i = 0; i < count; i++)
        sprintf(text + 2 * i, "%02x", bytes[i]);
}

/* On x86-64 integers and pointers are passed alike, varargs functions take them too, and a function
 * does not see arguments that it has no parameters for. */
static void call(char **words, unsigned count, char *answer)
{
    static const char *const missing = "-1\x1f"
                                       "ENOSYS";
    long arg[8] = {0};
    void *found = dlsym(RTLD_DEFAULT, words[1]);

    if (!found) {
        strcpy(answer, missing);
        return;
    }
    for (unsigned i = 2; i < count && i < 10; i++) {
        if (*words[i] == 's') {
            arg[i - 2] = (long)(words[i] + 1);
        } else if (*words[i] == 'x') {
            from_hex(words[i] + 1, (uint8_t *)words[i]);
            arg[i - 2] = (long)words[i];
        } else {
            arg[i - 2] = (long)number(words[i]);
        }
    }
    errno = 0;
    long result = ((long (*)(long, long, long, long, long, long, long, long))(uintptr_t)found)(
        arg[0], arg[1], arg[2], arg[3], arg[4], arg[5], arg[6], arg[7]);
    int error = errno;

    /* A function that returns int leaves the upper half of the register open. */
    if ((uint32_t)result == UINT32_MAX)
        result = -1;
    sprintf(answer, "%ld%c%s", result, SEPARATOR, error ? strerrorname_np(error) : "0");
}

static int connect_to_test(void)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char hello[100];
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    strncpy(to.sun_path + 1, address, sizeof to.sun_path - 2);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(address));
    if (sock < 0 || connect(sock, (struct sockaddr *)&to, size))
        _exit(111);
    int length = sprintf(hello, "%d%c%ld%c%lu", getpid(), SEPARATOR, syscall(SYS_gettid), SEPARATOR,
                         (unsigned long)pool);
    if (send(sock, hello, (size_t)length, 0) < 0)
        _exit(112);
    return sock;
}

static void obey(int sock);

static void *more(void *unused)
{
    (void)unused;
    obey(connect_to_test());
    return NULL;
}

static void start_thread(char *answer)
{
    pthread_t thread;
    int err = pthread_create(&thread, NULL, more, NULL);

    if (!err)
        pthread_detach(thread);
    sprintf(answer, "%d", err);
}

static int clone_main(void *sock)
{
    close(*(int *)sock);
    obey(connect_to_test());
    return 0;
}

static pid_t new_child(const char *how, int sock)
{
    static uint8_t stack[1 << 18] __attribute__((aligned(16)));

    if (!strcmp(how, "_Fork"))
        return _Fork();
    if (!strcmp(how, "clone"))
        return clone(clone_main, stack + sizeof stack, SIGCHLD, &sock);
    if (!strcmp(how, "syscall"))
        return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    return fork();
}

static int start_child(int sock, const char *how, char *answer)
{
    pid_t child = new_child(how, sock);

    if (child == 0) {
        close(sock);
        sock = connect_to_test();
        *answer = 0; /* it has said hello */
    } else {
        sprintf(answer, "%d", child);
    }
    return sock;
}

static void store_in_vfork(char **words, char *answer)
{
    volatile uint8_t *at = (volatile uint8_t *)number(words[1]);
    uint8_t byte = (uint8_t)number(words[2]);
    int status = 0;
    pid_t child = vfork();

    if (child == 0) {
        *at = byte;
        _exit(0);
    }
    waitpid(child, &status, 0);
    sprintf(answer, "%d", status);
}

/* Returns the socket to go on with. */
static int handle(int sock, char **words, unsigned count, char *answer)
{
    const char *verb = words[0];

    strcpy(answer, "0");
    if (!strcmp(verb, "call") && count > 1)
        call(words, count, answer);
    else if (!strcmp(verb, "load"))
        touch(LOAD, (uint8_t *)number(words[1]), 0, answer);
    else if (!strcmp(verb, "store"))
        touch(STORE, (uint8_t *)number(words[1]), (uint8_t)number(words[2]), answer);
    else if (!strcmp(verb, "run"))
        touch(RUN, (uint8_t *)number(words[1]), 0, answer);
    else if (!strcmp(verb, "get"))
        to_hex((uint8_t *)number(words[1]), number(words[2]), answer);
    else if (!strcmp(verb, "put"))
        from_hex(words[2], (uint8_t *)number(words[1]));
    else if (!strcmp(verb, "signals"))
        sprintf(answer, "%d", (int)file_size_signals);
    else if (!strcmp(verb, "fork"))
        return start_child(sock, count > 1 ? words[1] : "", answer);
    else if (!strcmp(verb, "thread"))
        start_thread(answer);
    else if (!strcmp(verb, "vfork"))
        store_in_vfork(words, answer);
    else if (!strcmp(verb, "exec")) {
        execl("/proc/thread-self/exe", "agent", address, NULL);
        sprintf(answer, "%s", strerrorname_np(errno));
    } else if (!strcmp(verb, "leave")) {
        close(sock);
        pthread_exit(NULL);
    } else if (!strcmp(verb, "exit"))
        _exit((int)number(words[1]));
    else
        strcpy(answer, "?");
    return sock;
}

static void obey(int sock)
{
    char *request = malloc(PACKET), *answer = malloc(2 * PACKET);

    for (;;) {
        char *words[WORDS] = {0}, *rest = request;
        unsigned count = 0;
        ssize_t got = recv(sock, request, PACKET - 1, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            _exit(0);
        request[got] = 0;
        while (rest && count < WORDS) {
            words[count++] = rest;
            rest = strchr(rest, SEPARATOR);
            if (rest)
                *rest++ = 0;
        }
        sock = handle(sock, words, count, answer);
        if (*answer && send(sock, answer, strlen(answer), MSG_NOSIGNAL) < 0)
            _exit(0);
    }
}

int main(int argc, char **argv)
{
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    struct sigaction file_size = {.sa_handler = on_file_size};

    if (argc < 2)
        return 2;
    address = argv[1];
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGBUS, &fault, NULL);
    sigaction(SIGXFSZ, &file_size, NULL);
    obey(connect_to_test());
}
