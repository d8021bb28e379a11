/* Preloaded into a process: makes the n-th call on a file below FAULTS_UNDER fail, or return short. See io_errors.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long left = -1, calls;
static int error, is_on;
static char names[65536][12];

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

/* 0: go on; 1: fail with errno set; 2: be short */
static int strike(const char *name) {
    if (calls < 65536) strcpy(names[calls], name);
    calls++;
    if (left < 0 || calls - 1 != left) return 0;
    if (!error) return 2;
    errno = error;
    return 1;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)

#define TRANSFER(name, buffer, ...) \
    ssize_t name(int fd, buffer data, size_t size __VA_ARGS__)

#define BODY(label, call, short_call) \
    int what = is_on && is_ours(fd) ? strike(label) : 0; \
    if (what == 1) return -1; \
    return what == 2 && size > 1 ? short_call : call;

ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, read, int, void *, size_t);
    BODY("read", real(fd, data, size), real(fd, data, size / 2))
}
ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    BODY("write", real(fd, data, size), real(fd, data, size / 2))
}
#define AT(name, type, label) \
    ssize_t name(int fd, type data, size_t size, off_t at) { \
        REAL(ssize_t, name, int, type, size_t, off_t); \
        BODY(label, real(fd, data, size, at), real(fd, data, size / 2, at)) \
    }
AT(pread, void *, "pread")
AT(pread64, void *, "pread")
AT(pwrite, const void *, "pwrite")
AT(pwrite64, const void *, "pwrite")

/* short: half of the first part */
#define PREADV2(name) \
    ssize_t name(int fd, const struct iovec *data, int count, off_t at, int flags) { \
        REAL(ssize_t, name, int, const struct iovec *, int, off_t, int); \
        struct iovec half = {data->iov_base, (data->iov_len + 1) / 2}; \
        int what = is_on && is_ours(fd) ? strike("preadv") : 0; \
        if (what == 1) return -1; \
        return what == 2 ? real(fd, &half, 1, at, flags) : real(fd, data, count, at, flags); \
    }
PREADV2(preadv2)
PREADV2(preadv64v2)

#define FAIL(label, ours, failed, call) \
    if (is_on && (ours) && strike(label) == 1) return failed; \
    return call;

ssize_t writev(int fd, const struct iovec *data, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    FAIL("writev", is_ours(fd), -1, real(fd, data, count))
}
#define PWRITEV(name) \
    ssize_t name(int fd, const struct iovec *data, int count, off_t at) { \
        REAL(ssize_t, name, int, const struct iovec *, int, off_t); \
        FAIL("pwritev", is_ours(fd), -1, real(fd, data, count, at)) \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)
#define ONE_FD(name) int name(int fd) { REAL(int, name, int); FAIL(#name, is_ours(fd), -1, real(fd)) }
ONE_FD(fsync)
ONE_FD(fdatasync)
#define STAT_FD(name, type) \
    int name(int fd, type *status) { REAL(int, name, int, type *); FAIL("fstat", is_ours(fd), -1, real(fd, status)) }
STAT_FD(fstat, struct stat)
STAT_FD(fstat64, struct stat64)
#define STAT(name, type) \
    int name(const char *path, type *status) { \
        REAL(int, name, const char *, type *); \
        FAIL(#name, is_under(path), -1, real(path, status)) \
    }
STAT(stat, struct stat)
STAT(stat64, struct stat64)
STAT(lstat, struct stat)
STAT(lstat64, struct stat64)
#define MMAP(name) \
    void *name(void *address, size_t size, int access, int flags, int fd, off_t at) { \
        REAL(void *, name, void *, size_t, int, int, int, off_t); \
        FAIL("mmap", fd >= 0 && is_ours(fd), MAP_FAILED, real(address, size, access, flags, fd, at)) \
    }
MMAP(mmap)
MMAP(mmap64)
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    FAIL("rename", is_under(from), -1, real(from, to))
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    FAIL("mkdir", is_under(path), -1, real(path, mode))
}
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        FAIL("open", is_under(path), -1, real(path, flags, mode)) \
    }
OPEN(open)
OPEN(open64)
