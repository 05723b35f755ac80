/*
 * create.c - a region without a name, and who owns a region.
 *
 * It is a file of a mount that no directory shows, as O_TMPFILE makes it. Which mount:
 * $MSHAREFS_MOUNT, or the only one that is root's or the caller's own.
 */
#define _GNU_SOURCE
#include "client/create.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/control.h"

/* The fields of a line of /proc/self/mountinfo that are looked at; they lie in the line. */
struct line {
    char *device, *directory, *type, *options;
};

static bool split(char *text, struct line *line)
{
    char *field, *save;
    unsigned number = 0, after = 0; /* after the "-" */

    *line = (struct line){0};
    for (field = strtok_r(text, " \n", &save); field; field = strtok_r(NULL, " \n", &save)) {
        number++;
        if (after)
            after++;
        else if (number > 6 && !strcmp(field, "-"))
            after = 1;
        if (number == 3)
            line->device = field;
        else if (number == 5)
            line->directory = field;
        else if (after == 2)
            line->type = field;
        if (after)
            line->options = field; /* the last one; the source before it may be empty */
    }
    return line->options && line->type;
}

/* Undoes the octal escapes of blanks and the like. */
static void unescape(char *text)
{
    char *to = text;

    for (; *text; text++) {
        if (text[0] == '\\' && text[1] && text[2] && text[3]) {
            *to++ = (char)((text[1] - '0') * 64 + (text[2] - '0') * 8 + (text[3] - '0'));
            text += 3;
        } else {
            *to++ = *text;
        }
    }
    *to = 0;
}

static bool is_ours(const struct line *line)
{
    const char *user = strstr(line->options, "user_id=");
    const unsigned long id = user ? strtoul(user + strlen("user_id="), NULL, 10) : 0;

    return (!strcmp(line->type, "fuse.msharefs") || !strcmp(line->type, "msharefs")) &&
           (!id || id == geteuid());
}

/* -ENODEV: there is none, or more than one. */
static int only_mount(char directory[PATH_MAX])
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char device[32] = "", *text = NULL;
    size_t room = 0;
    bool several = false;
    struct line line;

    if (!file)
        return -errno;
    while (getline(&text, &room, file) > 0) {
        if (!split(text, &line) || !is_ours(&line) || strlen(line.directory) >= PATH_MAX)
            continue;
        unescape(line.directory);
        /* What is mounted later covers what was there; the same one may have several places. */
        if (*device && strcmp(directory, line.directory) && strcmp(device, line.device))
            several = true;
        strcpy(directory, line.directory);
        snprintf(device, sizeof device, "%s", line.device);
    }
    free(text);
    fclose(file);
    return *device && !several ? 0 : -ENODEV;
}

static int create(unsigned flags)
{
    const char *chosen = getenv("MSHAREFS_MOUNT");
    char directory[PATH_MAX];
    int err = 0, fd;

    if (flags & ~(unsigned)O_CLOEXEC)
        return -EINVAL;
    if (!chosen || !*chosen) {
        err = only_mount(directory);
        chosen = directory;
    }
    if (err)
        return err;
    /* O_EXCL: nor can it get one. */
    fd = open(chosen, O_TMPFILE | O_EXCL | O_RDWR | (int)flags, 0600);
    if (fd < 0)
        return -errno;
    const int sock = control_connect(fd); /* is it ours at all? */
    if (sock >= 0)
        close(sock);
    else
        close(fd);
    return sock < 0 ? sock == -ENOTTY ? -ENODEV : sock : fd;
}

int mshare_create(unsigned int flags)
{
    const int fd = create(flags);

    if (fd >= 0)
        return fd;
    errno = fd == -EOPNOTSUPP || fd == -EISDIR ? ENODEV : -fd;
    return -1;
}

int mshare_set_owner(int fd, int pidfd)
{
    struct mshare_owner owner = {.pidfd = pidfd};

    return ioctl(fd, MSHAREFS_SET_OWNER, &owner);
}
