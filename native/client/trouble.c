/*
 * trouble.c - why an access ends in SIGBUS; see trouble.h.
 *
 * Runs on the service thread: no malloc, no stdio, no region memory.
 */
#include "client/trouble.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/mode.h"

#define LINE_MAX_BYTES 256

static bool wanted;

void trouble_choose(void)
{
    const char *asked = getenv("MSHAREFS_DEBUG");

    wanted = asked && *asked;
}

static char *put(char *at, const char *text)
{
    const size_t length = strlen(text);

    memcpy(at, text, length);
    return at + length;
}

static char *put_number(char *at, uint64_t number, unsigned base)
{
    char digits[20];
    unsigned count = 0;

    do
        digits[count++] = "0123456789abcdef"[number % base];
    while (number /= base);
    while (count)
        *at++ = digits[--count];
    return at;
}

void trouble_tell(const struct fault *fault)
{
    char line[LINE_MAX_BYTES], *at = line;

    if (!wanted || mode_of_next() == BY_SHADOW)
        return;
    at = put_number(put(at, "msharefs: process "), (uint64_t)getpid(), 10);
    at = put_number(put(at, ": SIGBUS at region offset 0x"), fault->offset, 16);
    if (fault->vma.object)
        at = put_number(put(at, ", object "), fault->vma.object, 10);
    at = put(put(at, ": "), fault->step ? fault->step : "the server says so");
    if (fault->error)
        at = put_number(put(at, ", errno "), (uint64_t)-fault->error, 10);
    at = put(at, "\n");
    if (write(STDERR_FILENO, line, (size_t)(at - line)) < 0)
        return; /* nobody listens */
}
