/*
 * mounts.c - a program for the kernel series looks at the mount table, mounts and unmounts.
 *
 *   mounts DIR ELSEWHERE    DIR: where a msharefs is mounted; ELSEWHERE: any directory
 *
 * Prints the answers on stdout. Changes only a mount namespace of its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *where;
static char between[4096]; /* `where` as a word of a line */

static void say(const char *step, long result)
{
    printf("%s: %s\n", step, result < 0 ? strerrorname_np(errno) : "0");
    fflush(stdout);
}

static void by_entries(const char *table)
{
    FILE *file = setmntent(table, "r");
    struct mntent entry;
    char text[4096];

    while (getmntent_r(file, &entry, text, sizeof text))
        if (!strcmp(entry.mnt_dir, where))
            printf("entry of %s: %s\n", table, entry.mnt_type);
    endmntent(file);
}

/* Of a line of either format: the third word, or the one behind the "-". */
static void print_type(const char *how, const char *table, const char *line)
{
    const char *rest = strstr(line, " - ");
    char type[64] = "";

    sscanf(rest ? rest : line, rest ? " - %63s" : "%*s %*s %63s", type);
    printf("%s of %s: %s\n", how, table, type);
}

static void by_lines(const char *table, const char *mode)
{
    FILE *file = fopen(table, mode);
    char first[4096], line[4096];
    char *got = fgets(first, sizeof first, file);

    rewind(file);
    printf("again: %d\n", got && fgets(line, sizeof line, file) && !strcmp(first, line));
    printf("kept by exec: %d\n", !(fcntl(fileno(file), F_GETFD) & FD_CLOEXEC));
    while (fgets(line, sizeof line, file))
        if (strstr(line, between))
            print_type("line", table, line);
    fclose(file);
}

static void by_read(const char *table)
{
    const int fd = open(table, O_RDONLY);
    static char text[1 << 20];
    size_t length = 0;
    ssize_t got;

    while ((got = read(fd, text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)got;
    close(fd);
    const char *place = strstr(text, between);
    const char *line = place;
    while (line && line > text && line[-1] != '\n')
        line--;
    if (line)
        print_type("text", table, line);
}

static void look(void)
{
    int fd;

    by_entries("/proc/mounts");
    by_entries("/proc/self/mounts");
    by_lines("/proc/self/mounts", "r");
    by_lines("/proc/self/mountinfo", "re");
    by_read("/proc/self/mounts");
    fd = open("/dev/null", O_RDONLY);
    printf("next descriptor: %d\n", fd);
    close(fd);
}

static int mount_it(const char *target, unsigned long flags, const void *options)
{
    return mount("msharefs", target, "msharefs", flags, options);
}

/* Each mount of the type is taken back, the last one by a child of fork(2), which is told. */
static void mount_and_unmount(void)
{
    int status;
    const int first = mount_it(where, 0, NULL);

    say("mount", first);
    say("mount again", syscall(SYS_mount, "none", where, "msharefs", MS_NOSUID, ""));
    if (first) /* Linux's own would go */
        return;
    say("umount", umount(where));
    pid_t child = fork();
    if (!child)
        _exit(umount2(where, MNT_DETACH) ? errno : 0);
    waitpid(child, &status, 0);
    printf("umount by a child: %d\n", status);
    say("umount", syscall(SYS_umount2, where, UMOUNT_NOFOLLOW));
    by_entries("/proc/mounts");
}

int main(int argc, char **argv)
{
    char inside[4096];

    if (argc < 3 || unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return 2;
    where = argv[1];
    snprintf(between, sizeof between, " %s ", where);
    snprintf(inside, sizeof inside, "%s/mshare_info", where);
    look();
    mount_and_unmount();

    say("mount elsewhere", mount_it(argv[2], 0, NULL));
    say("mount nowhere", mount_it("/nowhere", 0, NULL));
    say("mount of a file", mount_it(inside, 0, NULL));
    say("mount, read-only", mount_it(where, MS_RDONLY, NULL));
    say("mount with an option", mount_it(where, 0, "size=1G"));
    say("mount of an unknown type", mount("none", where, "msharefs2", 0, NULL));
    say("mount of a bad pointer", mount("none", where, (const char *)8, MS_RDONLY, NULL));
    say("umount of no mount", umount(argv[2]));
    say("umount, bad flags", umount2(argv[2], 1 << 30));
    say("tmpfs", mount("none", argv[2], "tmpfs", 0, NULL));
    say("its umount", umount(argv[2]));
    say("bind", mount(where, argv[2], NULL, MS_BIND, NULL));
    say("mount there", mount_it(argv[2], 0, NULL));
    say("umount there", umount(argv[2]));
    say("ours goes", umount2(where, MNT_DETACH));
    say("mount without it", mount_it(where, 0, NULL));
    return 0;
}
