/* Preloaded into a process: makes the n-th call on a file below FAULTS_UNDER fail, or return short. See io_errors.py. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { MOST = 65536 };
static long left = -1, calls;
static int error, is_on;
static char names[MOST][16];

void faults_arm(long nth, int code) { left = nth; error = code; calls = 0; is_on = 1; }
long faults_disarm(void) { is_on = 0; return calls; }
const char *faults_name(long call) { return names[call]; }

static int is_under(const char *path) {
    const char *under = getenv("FAULTS_UNDER");
    return under && path && strncmp(path, under, strlen(under)) == 0;
}

static int is_ours(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_under(path);
}

static int is_at(int fd, const char *path) {
    return path && (path[0] == '/' || fd == AT_FDCWD ? is_under(path) : is_ours(fd));
}

/* 0: go on; 1: fail with errno set; 2: be short */
static int strike(const char *name) {
    if (calls < MOST) snprintf(names[calls], sizeof names[0], "%s", name);
    calls++;
    if (left < 0 || calls - 1 != left) return 0;
    if (!error) return 2;
    errno = error;
    return 1;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define FAIL(label, ours, failed, call) \
    if (is_on && (ours) && strike(label) == 1) return failed; \
    return call;
/* NAME is the function, LABEL what it is called in figures, OURS whether it is on a file of ours. */
#define CALL(type, name, label, ours, failed, parameters, types, arguments) \
    type name parameters { REAL(type, name, types); FAIL(label, ours, failed, real arguments) }
#define TYPES(...) __VA_ARGS__
#define FD_CALL(name, label) CALL(int, name, label, is_ours(fd), -1, (int fd), TYPES(int), (fd))
#define PATH_CALL(name, label) CALL(int, name, label, is_under(path), -1, (const char *path), TYPES(const char *), (path))

#define SHORTER(label, call, short_call) \
    int what = is_on && is_ours(fd) ? strike(label) : 0; \
    if (what == 1) return -1; \
    return what == 2 && size > 1 ? short_call : call;
#define TRANSFER(name, type) \
    ssize_t name(int fd, type data, size_t size) { \
        REAL(ssize_t, name, int, type, size_t); \
        SHORTER(#name, real(fd, data, size), real(fd, data, size / 2)) \
    }
#define TRANSFER_AT(name, label, type) \
    ssize_t name(int fd, type data, size_t size, off_t at) { \
        REAL(ssize_t, name, int, type, size_t, off_t); \
        SHORTER(label, real(fd, data, size, at), real(fd, data, size / 2, at)) \
    }
TRANSFER(read, void *)
TRANSFER(write, const void *)
TRANSFER_AT(pread, "pread", void *)
TRANSFER_AT(pread64, "pread", void *)
TRANSFER_AT(pwrite, "pwrite", const void *)
TRANSFER_AT(pwrite64, "pwrite", const void *)

/* Half of the first piece, where a transfer of pieces is short. */
#define PIECES(name, label, extra, types, arguments) \
    ssize_t name(int fd, const struct iovec *data, int count extra) { \
        REAL(ssize_t, name, int, const struct iovec *, int types); \
        size_t size = count ? data->iov_len : 0; \
        struct iovec half = {size ? data->iov_base : 0, size / 2}; \
        SHORTER(label, real(fd, data, count arguments), real(fd, &half, 1 arguments)) \
    }
#define COMMA(...) , __VA_ARGS__
PIECES(readv, "readv", , , )
PIECES(writev, "writev", , , )
PIECES(preadv, "preadv", COMMA(off_t at), COMMA(off_t), COMMA(at))
PIECES(preadv64, "preadv", COMMA(off_t at), COMMA(off_t), COMMA(at))
PIECES(preadv2, "preadv", COMMA(off_t at, int flags), COMMA(off_t, int), COMMA(at, flags))
PIECES(preadv64v2, "preadv", COMMA(off_t at, int flags), COMMA(off_t, int), COMMA(at, flags))
PIECES(pwritev, "pwritev", COMMA(off_t at), COMMA(off_t), COMMA(at))
PIECES(pwritev64, "pwritev", COMMA(off_t at), COMMA(off_t), COMMA(at))

FD_CALL(fsync, "fsync")
FD_CALL(fdatasync, "fdatasync")
CALL(int, flock, "flock", is_ours(fd), -1, (int fd, int what), TYPES(int, int), (fd, what))
CALL(off_t, lseek, "lseek", is_ours(fd), -1, (int fd, off_t at, int from), TYPES(int, off_t, int), (fd, at, from))
CALL(off_t, lseek64, "lseek", is_ours(fd), -1, (int fd, off_t at, int from), TYPES(int, off_t, int), (fd, at, from))
CALL(int, ftruncate, "ftruncate", is_ours(fd), -1, (int fd, off_t size), TYPES(int, off_t), (fd, size))
CALL(int, ftruncate64, "ftruncate", is_ours(fd), -1, (int fd, off_t size), TYPES(int, off_t), (fd, size))

#define STATUS(name, fd_name, label, fd_label, type) \
    CALL(int, fd_name, fd_label, is_ours(fd), -1, (int fd, struct type *status), TYPES(int, struct type *), (fd, status)) \
    CALL(int, name, label, is_under(path), -1, (const char *path, struct type *status), \
         TYPES(const char *, struct type *), (path, status))
STATUS(stat, fstat, "stat", "fstat", stat)
STATUS(stat64, fstat64, "stat", "fstat", stat64)
STATUS(statfs, fstatfs, "statfs", "fstatfs", statfs)
STATUS(statfs64, fstatfs64, "statfs", "fstatfs", statfs64)
STATUS(statvfs, fstatvfs, "statvfs", "fstatvfs", statvfs)
STATUS(statvfs64, fstatvfs64, "statvfs", "fstatvfs", statvfs64)
#define STATUS_AT(name, type) \
    CALL(int, name, "fstatat", is_at(fd, path), -1, (int fd, const char *path, struct type *status, int flags), \
         TYPES(int, const char *, struct type *, int), (fd, path, status, flags))
STATUS_AT(fstatat, stat)
STATUS_AT(fstatat64, stat64)
#define STATUS_OF_LINK(name, type) \
    CALL(int, name, "lstat", is_under(path), -1, (const char *path, struct type *status), \
         TYPES(const char *, struct type *), (path, status))
STATUS_OF_LINK(lstat, stat)
STATUS_OF_LINK(lstat64, stat64)

#define MMAP(name) \
    CALL(void *, name, "mmap", fd >= 0 && is_ours(fd), MAP_FAILED, \
         (void *address, size_t size, int access, int flags, int fd, off_t at), \
         TYPES(void *, size_t, int, int, int, off_t), (address, size, access, flags, fd, at))
MMAP(mmap)
MMAP(mmap64)

CALL(int, rename, "rename", is_under(from), -1, (const char *from, const char *to), TYPES(const char *, const char *),
     (from, to))
CALL(int, renameat, "rename", is_at(fd, from), -1, (int fd, const char *from, int other, const char *to),
     TYPES(int, const char *, int, const char *), (fd, from, other, to))
CALL(int, renameat2, "rename", is_at(fd, from), -1,
     (int fd, const char *from, int other, const char *to, unsigned flags),
     TYPES(int, const char *, int, const char *, unsigned), (fd, from, other, to, flags))
CALL(int, link, "link", is_under(from), -1, (const char *from, const char *to), TYPES(const char *, const char *),
     (from, to))
CALL(int, linkat, "link", is_at(fd, from), -1, (int fd, const char *from, int other, const char *to, int flags),
     TYPES(int, const char *, int, const char *, int), (fd, from, other, to, flags))
CALL(int, mkdir, "mkdir", is_under(path), -1, (const char *path, mode_t mode), TYPES(const char *, mode_t), (path, mode))
CALL(int, mkdirat, "mkdir", is_at(fd, path), -1, (int fd, const char *path, mode_t mode),
     TYPES(int, const char *, mode_t), (fd, path, mode))
CALL(int, chmod, "chmod", is_under(path), -1, (const char *path, mode_t mode), TYPES(const char *, mode_t), (path, mode))
CALL(int, fchmod, "chmod", is_ours(fd), -1, (int fd, mode_t mode), TYPES(int, mode_t), (fd, mode))
CALL(int, utimensat, "utimens", is_at(fd, path), -1,
     (int fd, const char *path, const struct timespec times[2], int flags),
     TYPES(int, const char *, const struct timespec[2], int), (fd, path, times, flags))
PATH_CALL(unlink, "unlink")
PATH_CALL(rmdir, "rmdir")
CALL(int, unlinkat, "unlink", is_at(fd, path), -1, (int fd, const char *path, int flags), TYPES(int, const char *, int),
     (fd, path, flags))

CALL(DIR *, opendir, "opendir", is_under(path), NULL, (const char *path), TYPES(const char *), (path))
CALL(DIR *, fdopendir, "opendir", is_ours(fd), NULL, (int fd), TYPES(int), (fd))
CALL(struct dirent *, readdir, "readdir", is_ours(dirfd(names_)), NULL, (DIR *names_), TYPES(DIR *), (names_))
CALL(struct dirent64 *, readdir64, "readdir", is_ours(dirfd(names_)), NULL, (DIR *names_), TYPES(DIR *), (names_))

/* What was written may be refused as late as here; the descriptor is closed all the same. */
int close(int fd) {
    REAL(int, close, int);
    int is_written = is_on && is_ours(fd) && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
    int fails = is_written && strike("close") == 1, code = errno, done = real(fd);
    if (fails) errno = code;
    return fails ? -1 : done;
}

#define MODE \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    const char *label = flags & O_CREAT ? "create" : "open";
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        MODE FAIL(label, is_under(path), -1, real(path, flags, mode)) \
    }
#define OPEN_AT(name) \
    int name(int fd, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        MODE FAIL(label, is_at(fd, path), -1, real(fd, path, flags, mode)) \
    }
OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)

/* A descriptor that is doubled; its other uses are not ours. */
#define FCNTL(name) \
    int name(int fd, int what, ...) { \
        REAL(int, name, int, int, ...); \
        va_list rest; \
        va_start(rest, what); \
        void *argument = va_arg(rest, void *); \
        va_end(rest); \
        FAIL("dup", (what == F_DUPFD || what == F_DUPFD_CLOEXEC) && is_ours(fd), -1, real(fd, what, argument)) \
    }
FCNTL(fcntl)
FCNTL(fcntl64)
