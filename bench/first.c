/* The program inside every container that is measured: it says when its first instruction ran, then does as it is told.
 *
 *   first NAME              and end
 *   first NAME wait         and wait for SIGTERM
 *   first NAME flood MB S   and write MB million bytes of lines a second to standard output for S seconds, then wait
 *   first NAME sink PORT    and swallow what TCP connections to PORT send, one at a time
 *   first NAME web PORT     and answer every request to PORT, of at most 64 connections at once, with two bytes
 *
 * The moment is one line, "NAME NANOSECONDS\n" of CLOCK_BOOTTIME, written to the FIFO /out/first: whoever holds its other
 * end hears it without asking any engine. No C library: between execve and the clock there is nothing.
 */
#include "sys.h"

enum { O_RDWR = 2, CLOCK_BOOTTIME = 7, LINE = 100, CHUNK = 65536 };

static char buffer[CHUNK];

void *memcpy(void *to, const void *from, usize size) {
    char *target = to;
    const char *source = from;
    while (size--) *target++ = *source++;
    return to;
}

void *memset(void *to, int value, usize size) {
    char *target = to;
    while (size--) *target++ = (char)value;
    return to;
}

static u64 nanoseconds(void) {
    struct timespec now = {0, 0};
    CALL(NR_clock_gettime, CLOCK_BOOTTIME, &now, 0, 0, 0);
    return (u64)now.sec * 1000000000ull + (u64)now.nsec;
}

static u64 number(const char *text) {
    u64 value = 0;
    while (*text >= '0' && *text <= '9') value = value * 10 + (u64)(*text++ - '0');
    return value;
}

static void report(const char *name, u64 moment) {
    char line[128], digits[24];
    usize used = 0, count = 0;
    while (name[used] && used < 64) { line[used] = name[used]; used++; }
    line[used++] = ' ';
    do digits[count++] = (char)('0' + moment % 10); while (moment /= 10);
    while (count) line[used++] = digits[--count];
    line[used++] = '\n';
    int fd = (int)sys_open("/out/first", O_RDWR | O_CLOEXEC, 0); /* read and write: never waits for a reader */
    if (fd < 0 || sys_write(fd, line, used) != (isize)used) sys_exit(3);
    sys_close(fd);
}

static void quit(int number) { (void)number; sys_exit(0); }

static void pause(void) { for (;;) sys_poll(NULL, 0, 3600000); }

static void flood(u64 rate, u64 seconds) { /* rate: bytes in a microsecond, which is MB in a second */
    for (usize i = 0; i < CHUNK; i++) buffer[i] = (char)(i % LINE == LINE - 1 ? '\n' : 'a' + i % 26);
    u64 began = nanoseconds(), sent = 0;
    for (;;) {
        u64 passed = nanoseconds() - began;
        if (passed >= seconds * 1000000000ull) break;
        if (sent * 1000 > passed * rate) { sys_poll(NULL, 0, 1); continue; }
        isize written = sys_write(1, buffer, CHUNK - CHUNK % LINE);
        if (written < 0) sys_exit(4);
        sent += (u64)written;
    }
}

static int listen_on(u64 port) {
    struct sockaddr_in address = {AF_INET, (u16)(port >> 8 | port << 8), 0, {0}};
    int listener = (int)sys_socket();
    sys_reuse_address(listener);
    if (listener < 0 || sys_bind(listener, &address) < 0 || sys_listen(listener, 64) < 0) sys_exit(5);
    return listener;
}

/* A client that waits for each answer sends one request at a time, in one segment. */
static void web(u64 port) {
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    static struct pollfd open[65];
    struct sockaddr_in address;
    int count = 1;
    open[0] = (struct pollfd){listen_on(port), POLLIN, 0};
    for (;;) {
        sys_poll(open, (u32)count, 3600000);
        if (open[0].revents && count < 65) {
            int fd = (int)sys_accept(open[0].fd, &address);
            if (fd >= 0) open[count++] = (struct pollfd){fd, POLLIN, 0};
        }
        for (int i = count - 1; i > 0; i--) {
            if (!open[i].revents) continue;
            isize got = sys_read(open[i].fd, buffer, CHUNK);
            if (got > 0) got = sys_write(open[i].fd, answer, sizeof answer - 1);
            if (got > 0 || got == -EAGAIN || got == -EINTR) continue;
            sys_close(open[i].fd);
            open[i] = open[--count];
        }
    }
}

static void sink(u64 port) {
    struct sockaddr_in address;
    int listener = listen_on(port);
    for (;;) {
        struct pollfd wait = {listener, POLLIN, 0};
        sys_poll(&wait, 1, 3600000);
        int fd = (int)sys_accept(listener, &address);
        if (fd < 0) continue;
        for (;;) {
            isize got = sys_read(fd, buffer, CHUNK);
            if (got == 0 || (got < 0 && got != -EAGAIN && got != -EINTR)) break;
            struct pollfd more = {fd, POLLIN, 0};
            if (got < 0) sys_poll(&more, 1, 3600000);
        }
        sys_close(fd);
    }
}

__attribute__((noreturn, used)) void begin(long *stack) {
    u64 moment = nanoseconds();
    long count = stack[0];
    char **arguments = (char **)(stack + 1);
    if (count < 2) sys_exit(2);
    sys_signal(SIGTERM, quit);
    report(arguments[1], moment);
    if (count == 2) sys_exit(0);
    if (arguments[2][0] == 'f' && count == 5) flood(number(arguments[3]), number(arguments[4]));
    if (arguments[2][0] == 's' && count == 4) sink(number(arguments[3]));
    if (arguments[2][0] == 'w' && arguments[2][1] == 'e') web(number(arguments[3]));
    pause();
    sys_exit(0);
}
