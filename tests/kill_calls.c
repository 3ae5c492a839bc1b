/* Ends this process with SIGKILL at the n-th system call that changes something below a folder, whoever makes it.
 *
 * Preloaded (LD_PRELOAD), so that calls of Python, Rust and C++ are seen alike.  A call that writes is cut short: half
 * of its bytes are written before the end.  Any other one is not made at all.  `kill_calls_at(n, folder)` begins to
 * count, `kill_calls_count()` says how many there were; n = 0 counts only.  Linux with glibc.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length;
static long wanted;
static atomic_long count;

void kill_calls_at(long n, const char *path) {
    wanted = n;
    atomic_store(&count, 0);
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
}

long kill_calls_count(void) { return atomic_load(&count); }

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static int is_below(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == 0 || path[folder_length] == '/');
}

/* Whether a call on this path is the one to die at. */
static int is_due_at(int directory, const char *path) {
    char whole[2 * PATH_MAX + 2], link[64];
    if (folder_length == 0)
        return 0;
    if (path != NULL && (path[0] == '/' || directory == AT_FDCWD)) {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, whole, PATH_MAX);
        if (length < 0)
            return 0;
        whole[length] = 0;
        if (path != NULL) {
            whole[length] = '/';
            snprintf(whole + length + 1, PATH_MAX, "%s", path);
        }
    }
    return is_below(whole) && atomic_fetch_add(&count, 1) + 1 == wanted;
}

static int is_due(int descriptor) { return is_due_at(descriptor, NULL); }

static void die_if(int due) {
    if (due)
        die();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Opening counts where it makes or empties a file. */
#define OPEN_MODE(flags)                                                                                               \
    mode_t mode = 0;                                                                                                   \
    if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) {                                                                             \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        OPEN_MODE(flags)                                                                                               \
        if (flags & (O_CREAT | O_TRUNC))                                                                               \
            die_if(is_due_at(AT_FDCWD, path));                                                                         \
        return REAL(name)(path, flags, mode);                                                                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int directory, const char *path, int flags, ...) {                                                        \
        OPEN_MODE(flags)                                                                                               \
        if (flags & (O_CREAT | O_TRUNC))                                                                               \
            die_if(is_due_at(directory, path));                                                                        \
        return REAL(name)(directory, path, flags, mode);                                                               \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                                                    \
    FILE *name(const char *path, const char *mode) {                                                                   \
        if (mode[0] != 'r')                                                                                            \
            die_if(is_due_at(AT_FDCWD, path));                                                                         \
        return REAL(name)(path, mode);                                                                                 \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int descriptor, const void *bytes, size_t size) {
    if (is_due(descriptor)) {
        REAL(write)(descriptor, bytes, size / 2);
        die();
    }
    return REAL(write)(descriptor, bytes, size);
}

#define PWRITE(name, offset_type)                                                                                      \
    ssize_t name(int descriptor, const void *bytes, size_t size, offset_type offset) {                                 \
        if (is_due(descriptor)) {                                                                                      \
            REAL(name)(descriptor, bytes, size / 2, offset);                                                           \
            die();                                                                                                     \
        }                                                                                                              \
        return REAL(name)(descriptor, bytes, size, offset);                                                            \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    if (is_due(descriptor)) {
        REAL(writev)(descriptor, parts, number / 2);
        die();
    }
    return REAL(writev)(descriptor, parts, number);
}

#define COPY(name, offset_type)                                                                                        \
    ssize_t name(int to, int from, offset_type *offset, size_t size) {                                                 \
        die_if(is_due(to));                                                                                            \
        return REAL(name)(to, from, offset, size);                                                                     \
    }
COPY(sendfile, off_t)
COPY(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags) {
    die_if(is_due(to));
    return REAL(copy_file_range)(from, from_offset, to, to_offset, size, flags);
}

#define ON_DESCRIPTOR(name, parameters, arguments)                                                                     \
    int name parameters {                                                                                              \
        die_if(is_due(descriptor));                                                                                    \
        return REAL(name) arguments;                                                                                   \
    }
ON_DESCRIPTOR(fsync, (int descriptor), (descriptor))
ON_DESCRIPTOR(fchmod, (int descriptor, mode_t mode), (descriptor, mode))
ON_DESCRIPTOR(fdatasync, (int descriptor), (descriptor))
ON_DESCRIPTOR(ftruncate, (int descriptor, off_t size), (descriptor, size))
ON_DESCRIPTOR(ftruncate64, (int descriptor, off64_t size), (descriptor, size))
ON_DESCRIPTOR(posix_fallocate, (int descriptor, off_t from, off_t size), (descriptor, from, size))
ON_DESCRIPTOR(posix_fallocate64, (int descriptor, off64_t from, off64_t size), (descriptor, from, size))

#define ON_PATH(name, directory, parameters, arguments)                                                                \
    int name parameters {                                                                                              \
        die_if(is_due_at(directory, path));                                                                            \
        return REAL(name) arguments;                                                                                   \
    }
ON_PATH(unlink, AT_FDCWD, (const char *path), (path))
ON_PATH(unlinkat, at, (int at, const char *path, int flags), (at, path, flags))
ON_PATH(rmdir, AT_FDCWD, (const char *path), (path))
ON_PATH(remove, AT_FDCWD, (const char *path), (path))
ON_PATH(mkdir, AT_FDCWD, (const char *path, mode_t mode), (path, mode))
ON_PATH(mkdirat, at, (int at, const char *path, mode_t mode), (at, path, mode))
ON_PATH(chmod, AT_FDCWD, (const char *path, mode_t mode), (path, mode))
ON_PATH(truncate, AT_FDCWD, (const char *path, off_t size), (path, size))
ON_PATH(truncate64, AT_FDCWD, (const char *path, off64_t size), (path, size))
ON_PATH(rename, AT_FDCWD, (const char *from, const char *path), (from, path))
ON_PATH(renameat, at, (int from_at, const char *from, int at, const char *path), (from_at, from, at, path))
ON_PATH(renameat2, at, (int from_at, const char *from, int at, const char *path, unsigned flags),
        (from_at, from, at, path, flags))
ON_PATH(symlink, AT_FDCWD, (const char *from, const char *path), (from, path))
ON_PATH(link, AT_FDCWD, (const char *from, const char *path), (from, path))
