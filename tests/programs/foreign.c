/*
 * foreign.c DIRECTORY: another file system, with one file, whose server answers no ioctl and no
 * statfs, and reports on standard output that it was asked.
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse3/fuse.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES 65536

static void hang(const char *word)
{
    if (write(STDOUT_FILENO, word, strlen(word)) < 0)
        _exit(1);
    for (;;)
        pause();
}

static int on_getattr(const char *path, struct stat *found, struct fuse_file_info *unused)
{
    (void)unused;
    found->st_nlink = 1;
    found->st_mode = strcmp(path, "/") ? S_IFREG | 0666 : S_IFDIR | 0755;
    found->st_size = FILE_BYTES;
    return strcmp(path, "/") && strcmp(path, "/file") ? -ENOENT : 0;
}

static int on_open(const char *path, struct fuse_file_info *unused)
{
    (void)path, (void)unused;
    return 0;
}

static int on_read(const char *path, char *to, size_t size, off_t offset,
                   struct fuse_file_info *unused)
{
    (void)path, (void)offset, (void)unused;
    memset(to, 7, size);
    return (int)size;
}

static int on_ioctl(const char *path, unsigned command, void *arg, struct fuse_file_info *file,
                    unsigned flags, void *data)
{
    (void)path, (void)command, (void)arg, (void)file, (void)flags, (void)data;
    hang("ioctl\n");
    return 0;
}

static int on_statfs(const char *path, struct statvfs *unused)
{
    (void)path, (void)unused;
    hang("statfs\n");
    return 0;
}

int main(int argc, char **argv)
{
    static const struct fuse_operations operations = {.getattr = on_getattr,
                                                      .open = on_open,
                                                      .read = on_read,
                                                      .ioctl = on_ioctl,
                                                      .statfs = on_statfs};
    char *arguments[] = {argv[0], "-f", argv[1], NULL};

    return argc == 2 ? fuse_main(3, arguments, &operations, NULL) : 2;
}
