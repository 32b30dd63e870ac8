/* Loaded with LD_PRELOAD: numbers the operations that change files below a folder, and strikes at one of them.
 *
 * FAULT_FOLDER  the folder, an absolute path
 * FAULT_LOG     a file that gets one line an operation: number, seconds of the wall clock, what was struck, name, path
 * FAULT_MODE    kill (before the operation), after (after it), half (in the middle of a write, else before), enospc
 *               (it and every later one that needs space fail), eio (it alone fails), eacces (it and every later one
 *               that looks up a path fail)
 * FAULT_AT      the number of the operation, from 1
 *
 * A process that was forked begins to count again. The log is written with system calls, which are not numbered.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum need { PATH = 1, SPACE = 2 };              /* what an operation can lack */
enum verdict { GO, FAIL, DIE_AFTER, DIE_HALF }; /* what happens to it */

static _Atomic long count;
static pid_t owner;
static int log_file = -1;

static void begin(void)
{
    if (owner == getpid())
        return;
    owner = getpid();
    count = 0;
    const char *path = getenv("FAULT_LOG");
    log_file = path && *path ? syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
}

static void die(void)
{
    for (;;)
        syscall(SYS_kill, getpid(), SIGKILL);
}

/* The absolute path of `path` as seen from the folder `at`; "" if there is none. */
static void absolute(char *out, int at, const char *path)
{
    char link[64];
    ssize_t length = 0;
    *out = 0;
    if (path && *path == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    length = readlink(link, out, PATH_MAX / 2);
    if (length < 0)
        length = 0;
    out[length] = 0;
    if (path)
        snprintf(out + length, PATH_MAX - length, "/%s", path);
}

static int inside(const char *path)
{
    const char *folder = getenv("FAULT_FOLDER");
    size_t length = folder ? strlen(folder) : 0;
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

/* The verdict on one operation; errno is set for FAIL. */
static enum verdict judge(const char *name, int at, const char *path, int needs)
{
    char full[PATH_MAX + 8], line[PATH_MAX + 128];
    absolute(full, at, path);
    if (!inside(full))
        return GO;
    begin();
    long number = ++count, target = atol(getenv("FAULT_AT") ? getenv("FAULT_AT") : "0");
    const char *mode = getenv("FAULT_MODE") ? getenv("FAULT_MODE") : "";
    int now = target && number == target, since = target && number >= target, error = 0;
    if (since && (needs & SPACE) && !strcmp(mode, "enospc"))
        error = ENOSPC;
    if (since && (needs & PATH) && !strcmp(mode, "eacces"))
        error = EACCES;
    if (now && !strcmp(mode, "eio"))
        error = EIO;
    struct timespec clock;
    clock_gettime(CLOCK_REALTIME, &clock);
    int length = snprintf(line, sizeof line, "%ld\t%ld.%06ld\t%s\t%s\t%s\n", number, (long)clock.tv_sec,
                          clock.tv_nsec / 1000, error || now ? mode : "-", name, full);
    if (log_file >= 0 && syscall(SYS_write, log_file, line, length) < 0)
        log_file = -1;
    if (now && !strcmp(mode, "kill"))
        die();
    if (now && !strcmp(mode, "after"))
        return DIE_AFTER;
    if (now && !strcmp(mode, "half"))
        return DIE_HALF;
    errno = error;
    return error ? FAIL : GO;
}

#define REAL(type, name, ...)                   \
    static type (*real)(__VA_ARGS__);           \
    if (!real)                                  \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* An operation that is done whole or not at all. */
#define WHOLE(judgment, call)              \
    do {                                   \
        enum verdict what = judgment;      \
        if (what == FAIL)                  \
            return -1;                     \
        if (what == DIE_HALF)              \
            die();                         \
        __typeof__(call) result = call;    \
        if (what == DIE_AFTER)             \
            die();                         \
        return result;                     \
    } while (0)

/* A write; `half` writes its first half. */
#define WRITE(judgment, call, half)        \
    do {                                   \
        enum verdict fate = judgment;      \
        if (fate == DIE_HALF && half >= 0) \
            die();                         \
        WHOLE(fate, call);                 \
    } while (0)

#define OPENS (O_CREAT | O_TRUNC)

#define OPEN(name)                                                                                    \
    int name(const char *path, int flags, ...)                                                        \
    {                                                                                                 \
        va_list rest;                                                                                 \
        va_start(rest, flags);                                                                        \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                       \
        va_end(rest);                                                                                 \
        REAL(int, name, const char *, int, ...);                                                      \
        WHOLE(flags & OPENS ? judge("open", AT_FDCWD, path, PATH | SPACE) : GO, real(path, flags, mode)); \
    }

#define OPENAT(name)                                                                                  \
    int name(int at, const char *path, int flags, ...)                                                \
    {                                                                                                 \
        va_list rest;                                                                                 \
        va_start(rest, flags);                                                                        \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                       \
        va_end(rest);                                                                                 \
        REAL(int, name, int, const char *, int, ...);                                                 \
        WHOLE(flags & OPENS ? judge("open", at, path, PATH | SPACE) : GO, real(at, path, flags, mode)); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    WRITE(judge("write", file, NULL, SPACE), real(file, bytes, size), real(file, bytes, size / 2));
}

#define PWRITE(name, offset)                                                                 \
    ssize_t name(int file, const void *bytes, size_t size, offset place)                     \
    {                                                                                        \
        REAL(ssize_t, name, int, const void *, size_t, offset);                              \
        WRITE(judge("write", file, NULL, SPACE), real(file, bytes, size, place),             \
              real(file, bytes, size / 2, place));                                           \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int size)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    WRITE(judge("write", file, NULL, SPACE), real(file, parts, size), real(file, parts, size / 2));
}

ssize_t pwritev(int file, const struct iovec *parts, int size, off_t place)
{
    REAL(ssize_t, pwritev, int, const struct iovec *, int, off_t);
    WRITE(judge("write", file, NULL, SPACE), real(file, parts, size, place), real(file, parts, size / 2, place));
}

#define SENDFILE(name, offset)                                                                         \
    ssize_t name(int to, int from, offset *place, size_t size)                                        \
    {                                                                                                 \
        REAL(ssize_t, name, int, int, offset *, size_t);                                              \
        WRITE(judge("copy", to, NULL, SPACE), real(to, from, place, size), real(to, from, place, 1)); \
    }

SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *source, int to, off64_t *place, size_t size, unsigned flags)
{
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    WRITE(judge("copy", to, NULL, SPACE), real(from, source, to, place, size, flags),
          real(from, source, to, place, 1, flags));
}

#define TRUNCATE(name, at, offset, file, path, needs)       \
    int name(at place, offset size)                            \
    {                                                          \
        REAL(int, name, at, offset);                           \
        WHOLE(judge("truncate", file, path, needs), real(place, size)); \
    }

TRUNCATE(ftruncate, int, off_t, place, NULL, 0)
TRUNCATE(ftruncate64, int, off64_t, place, NULL, 0)
TRUNCATE(truncate, const char *, off_t, AT_FDCWD, place, PATH)
TRUNCATE(truncate64, const char *, off64_t, AT_FDCWD, place, PATH)

int fsync(int file)
{
    REAL(int, fsync, int);
    WHOLE(judge("sync", file, NULL, SPACE), real(file));
}

int fdatasync(int file)
{
    REAL(int, fdatasync, int);
    WHOLE(judge("sync", file, NULL, SPACE), real(file));
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    WHOLE(judge("mkdir", AT_FDCWD, path, PATH | SPACE), real(path, mode));
}

int mkdirat(int at, const char *path, mode_t mode)
{
    REAL(int, mkdirat, int, const char *, mode_t);
    WHOLE(judge("mkdir", at, path, PATH | SPACE), real(at, path, mode));
}

int rmdir(const char *path)
{
    REAL(int, rmdir, const char *);
    WHOLE(judge("rmdir", AT_FDCWD, path, PATH), real(path));
}

int unlink(const char *path)
{
    REAL(int, unlink, const char *);
    WHOLE(judge("unlink", AT_FDCWD, path, PATH), real(path));
}

int unlinkat(int at, const char *path, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    WHOLE(judge("unlink", at, path, PATH), real(at, path, flags));
}

int link(const char *old, const char *path)
{
    REAL(int, link, const char *, const char *);
    WHOLE(judge("link", AT_FDCWD, path, PATH | SPACE), real(old, path));
}

int symlink(const char *old, const char *path)
{
    REAL(int, symlink, const char *, const char *);
    WHOLE(judge("link", AT_FDCWD, path, PATH | SPACE), real(old, path));
}

int rename(const char *old, const char *path)
{
    REAL(int, rename, const char *, const char *);
    WHOLE(judge("rename", AT_FDCWD, path, PATH), real(old, path));
}

int renameat(int from, const char *old, int at, const char *path)
{
    REAL(int, renameat, int, const char *, int, const char *);
    WHOLE(judge("rename", at, path, PATH), real(from, old, at, path));
}

int renameat2(int from, const char *old, int at, const char *path, unsigned flags)
{
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    WHOLE(judge("rename", at, path, PATH), real(from, old, at, path, flags));
}
