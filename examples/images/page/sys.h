/* The system calls that page needs, for amd64 and arm64, and nothing else of a C library.
 *
 * Numbers and structures are the kernel's own (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
 * Each function makes one call and returns what the kernel returned: a value, or a negative errno.
 */
#ifndef SYS_H
#define SYS_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long usize;
typedef long isize;

#define NULL ((void *)0)

enum { EINTR = 4, EAGAIN = 11, ENOENT = 2, EINPROGRESS = 115 };
enum { SIGINT = 2, SIGPIPE = 13, SIGTERM = 15 };
enum { POLLIN = 1, POLLOUT = 4, POLLERR = 8, POLLHUP = 16 };
enum { AF_INET = 2, SOCK_STREAM = 1, SOCK_NONBLOCK = 04000, SOCK_CLOEXEC = 02000000 };
enum { SOL_SOCKET = 1, SO_REUSEADDR = 2, SO_ERROR = 4, SHUT_WR = 1 };
enum { AT_FDCWD = -100, O_RDONLY = 0, O_WRONLY = 1, O_CREAT = 0100, O_TRUNC = 01000, O_NONBLOCK = 04000, O_CLOEXEC = 02000000 };
enum { CLOCK_MONOTONIC = 1 };

struct pollfd { int fd; short events; short revents; };
struct timespec { long sec; long nsec; };
struct sockaddr_in { u16 family; u16 port; u32 address; u8 zero[8]; }; /* port and address in network order */
struct utsname { char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65]; };

/* The kernel's struct sigaction. Both platforms have the restorer field; amd64 delivers no signal without one. */
struct sigaction { void (*handler)(int); unsigned long flags; void (*restorer)(int); u64 mask; };
enum { SA_RESTORER = 0x04000000 };
#define SIG_IGN ((void (*)(int))1)

#if defined(__x86_64__)

enum {
    NR_read = 0, NR_write = 1, NR_close = 3, NR_rt_sigaction = 13, NR_getpid = 39, NR_socket = 41, NR_connect = 42,
    NR_shutdown = 48, NR_bind = 49, NR_listen = 50, NR_setsockopt = 54, NR_getsockopt = 55, NR_uname = 63,
    NR_fsync = 74, NR_clock_gettime = 228, NR_exit_group = 231, NR_openat = 257, NR_renameat = 264, NR_ppoll = 271,
    NR_accept4 = 288,
};

static inline isize syscall6(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The kernel enters with argc at the stack pointer (System V ABI, 3.4.1); C wants the stack aligned to 16. */
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call begin\n ud2\n");

#elif defined(__aarch64__)

enum {
    NR_renameat = 38, NR_openat = 56, NR_close = 57, NR_read = 63, NR_write = 64, NR_ppoll = 73, NR_fsync = 82,
    NR_exit_group = 94, NR_clock_gettime = 113, NR_rt_sigaction = 134, NR_uname = 160, NR_getpid = 172,
    NR_socket = 198, NR_bind = 200, NR_listen = 201, NR_connect = 203, NR_setsockopt = 208, NR_getsockopt = 209,
    NR_shutdown = 210, NR_accept4 = 242,
};

static inline isize syscall6(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

__asm__(".globl _start\n_start:\n mov x29, #0\n mov x30, #0\n mov x0, sp\n bl begin\n brk #1\n");

#else
#error "page knows amd64 and arm64"
#endif

#define CALL(number, a, b, c, d, e) syscall6((number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

static isize sys_read(int fd, void *data, usize size) { return CALL(NR_read, fd, data, size, 0, 0); }
static isize sys_write(int fd, const void *data, usize size) { return CALL(NR_write, fd, data, size, 0, 0); }
static isize sys_close(int fd) { return CALL(NR_close, fd, 0, 0, 0, 0); }
static isize sys_open(const char *path, int flags, int mode) { return CALL(NR_openat, AT_FDCWD, path, flags, mode, 0); }
static isize sys_rename(const char *from, const char *to) { return CALL(NR_renameat, AT_FDCWD, from, AT_FDCWD, to, 0); }
static isize sys_fsync(int fd) { return CALL(NR_fsync, fd, 0, 0, 0, 0); }
static isize sys_uname(struct utsname *name) { return CALL(NR_uname, name, 0, 0, 0, 0); }
static isize sys_getpid(void) { return CALL(NR_getpid, 0, 0, 0, 0, 0); }
static isize sys_socket(void) { return CALL(NR_socket, AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0, 0); }
static isize sys_bind(int fd, const struct sockaddr_in *to) { return CALL(NR_bind, fd, to, sizeof *to, 0, 0); }
static isize sys_listen(int fd, int backlog) { return CALL(NR_listen, fd, backlog, 0, 0, 0); }
static isize sys_connect(int fd, const struct sockaddr_in *to) { return CALL(NR_connect, fd, to, sizeof *to, 0, 0); }
static isize sys_shutdown(int fd, int how) { return CALL(NR_shutdown, fd, how, 0, 0, 0); }

static isize sys_accept(int fd, struct sockaddr_in *from) {
    u32 size = sizeof *from;
    return CALL(NR_accept4, fd, from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

static isize sys_reuse_address(int fd) {
    int on = 1;
    return CALL(NR_setsockopt, fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
}

/* The errno of a connection attempt that has ended: 0 when it succeeded. */
static int sys_socket_error(int fd) {
    int error = 0;
    u32 size = sizeof error;
    isize result = CALL(NR_getsockopt, fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return result < 0 ? (int)-result : error;
}

static isize sys_poll(struct pollfd *fds, usize count, u64 milliseconds) {
    struct timespec wait = {(long)(milliseconds / 1000), (long)(milliseconds % 1000) * 1000000};
    return CALL(NR_ppoll, fds, count, &wait, NULL, 0);
}

static u64 sys_milliseconds(void) {
    struct timespec now = {0, 0};
    CALL(NR_clock_gettime, CLOCK_MONOTONIC, &now, 0, 0, 0);
    return (u64)now.sec * 1000 + (u64)now.nsec / 1000000;
}

static isize sys_signal(int number, void (*handler)(int)) {
    struct sigaction action = {handler, SA_RESTORER, handler, 0}; /* our handlers never return: no real restorer */
    return CALL(NR_rt_sigaction, number, &action, NULL, sizeof action.mask, 0);
}

__attribute__((noreturn)) static void sys_exit(int code) {
    for (;;) CALL(NR_exit_group, code, 0, 0, 0, 0);
}

#endif
