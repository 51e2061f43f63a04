/* page: a web server of a few kilobytes that says which container answers.
 *
 *   page [--port N] [--greeting FILE] [--count FILE] [--sibling NAME:PORT]
 *   page ask NAME:PORT[/PATH]
 *
 * It is what the example apps run: a static program without a C library, without threads, children or allocated memory,
 * for amd64 and arm64. As PID 1 it ends at once on SIGTERM. One slow or hostile client never holds up another: all
 * sockets are non-blocking, every connection has a deadline, and when the table is full the longest-waiting one goes.
 */
#include "http.h"
#include "name.h"
#include "text.h"

enum { CONNECTIONS = 64, REQUEST_SIZE = 4096, ANSWER_SIZE = 1024, BODY_SIZE = 16384, GREETING_SIZE = 1024 };
enum { PATIENCE = 10000, SIBLING_PATIENCE = 2000, LINGER = 1000 }; /* milliseconds */

/* Free -> Reading -> (Asking ->) Writing -> Draining -> Free; any state -> Free when its deadline passes. */
enum state { FREE, READING, ASKING, WRITING, DRAINING };

struct connection {
    enum state state;
    int client, sibling; /* `sibling` is a socket while Asking */
    int connected;       /* Asking: the request has been sent */
    u64 since, deadline; /* milliseconds on the monotonic clock */
    u32 address;
    struct request request; /* views into `received` */
    u64 visits;
    const char *trouble; /* why visits could not be counted */
    char received[REQUEST_SIZE], answered[ANSWER_SIZE], sending[BODY_SIZE + 512];
    usize received_size, answered_size, sending_size, sent;
};

static struct connection table[CONNECTIONS];
static struct utsname machine;
static struct { u16 port; const char *greeting, *count, *sibling; struct place place; } options;

static void end(int signal) {
    (void)signal;
    say(1, WORD("page: told to stop\n"));
    sys_exit(0);
}

/* --- counting visits ---------------------------------------------------------------------------------------------- */

/* Make FILE say `value`: written aside, synced, renamed, and the directory synced, so that a power cut leaves the old
 * number or the new one. Return 0 or a negative errno. */
static isize replace_number(const char *path, u64 value) {
    static char aside_buffer[4096], directory_buffer[4096];
    char digits[24];
    struct text aside = TEXT(aside_buffer), directory = TEXT(directory_buffer), line = TEXT(digits);
    struct view name = view_of(path);
    put(&aside, name);
    put(&aside, (struct view){".new\0", 5});
    usize slash = name.size;
    while (slash && name.data[slash - 1] != '/') slash--;
    if (slash) put(&directory, (struct view){name.data, slash}); else PUT(&directory, ".");
    put(&directory, (struct view){"\0", 1});
    put_number(&line, value);
    PUT(&line, "\n");
    if (aside.full || directory.full) return -36; /* ENAMETOOLONG */
    isize fd = sys_open(aside.data, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return fd;
    isize result = sys_write((int)fd, line.data, line.used);
    if (result >= 0) result = (usize)result == line.used ? sys_fsync((int)fd) : -28; /* ENOSPC: a short write */
    sys_close((int)fd);
    if (result >= 0) result = sys_rename(aside.data, path);
    if (result < 0) return result;
    fd = sys_open(directory.data, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return fd;
    result = sys_fsync((int)fd);
    sys_close((int)fd);
    return result;
}

/* Count one visit. The file is the truth: one that holds no number is reported, never started over. */
static void count_visit(struct connection *c) {
    char buffer[32];
    struct text file = TEXT(buffer);
    u64 before = 0;
    isize result = read_file(options.count, &file);
    c->trouble = NULL;
    if (result < 0 && result != -ENOENT) c->trouble = "cannot be read";
    else if (result == 1 || (result == 0 && !number(trim(content(&file)), 1ULL << 62, &before))) c->trouble = "hold no number";
    else if (replace_number(options.count, before + 1) < 0) c->trouble = "cannot be written";
    c->visits = before + 1;
}

/* --- the page ------------------------------------------------------------------------------------------------------ */

static void put_line(struct text *to, int html, struct view key, struct view value) {
    if (html) { PUT(to, "<tr><th>"); put_html(to, key); PUT(to, "<td>"); put_html(to, value); PUT(to, "\n"); return; }
    put(to, key);
    for (usize i = key.size; i < 11; i++) PUT(to, " ");
    put_plain(to, value);
    PUT(to, "\n");
}

static void put_greeting(struct text *to, int html) {
    static char buffer[GREETING_SIZE];
    struct text file = TEXT(buffer);
    if (options.greeting == NULL || read_file(options.greeting, &file) < 0) file.used = 0;
    struct view greeting = trim(content(&file));
    if (greeting.size == 0) greeting = WORD("Hello.");
    while (greeting.size) {
        struct view line = trim(take(&greeting, '\n'));
        if (html) { PUT(to, "<p class=greeting>"); put_html(to, line); } else put_plain(to, line);
        PUT(to, "\n");
    }
}

static void put_sibling(struct text *to, const struct connection *c) {
    int status = 0;
    struct view body = {NULL, 0};
    struct view all = {c->answered, c->answered_size};
    put(to, view_of(options.sibling));
    if (!parse_answer(all, &status, &body)) { PUT(to, " is unreachable"); return; }
    if (status != 200) { PUT(to, " answers with status "); put_number(to, (u64)status); return; }
    PUT(to, " says: ");
    body = trim(body);
    put(to, take(&body, '\n'));
}

static void put_page(struct text *to, const struct connection *c) {
    static char buffer[ANSWER_SIZE + 512];
    struct text value = TEXT(buffer);
    int html = c->request.html;
    if (html) {
        PUT(to, "<!DOCTYPE html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>");
        put_html(to, view_of(machine.nodename));
        PUT(to, "</title>\n<style>body{font:1.1em/1.6 system-ui,sans-serif;margin:12vh auto;max-width:36em;padding:0 1em;color:#223}"
                ".greeting{font-size:1.8em;margin:0 0 .6em}th{text-align:left;font-weight:400;color:#667;padding-right:2em}"
                "td{font-family:ui-monospace,monospace}@media(prefers-color-scheme:dark){body{background:#181a20;color:#dde}th{color:#99a}}</style>\n");
    }
    put_greeting(to, html);
    if (html) PUT(to, "<table>\n"); else PUT(to, "\n");
    put_line(to, html, WORD("container"), view_of(machine.nodename));
    put_number(&value, (u64)sys_getpid());
    put_line(to, html, WORD("process"), content(&value));
    value.used = 0;
    put_address(&value, c->address);
    put_line(to, html, WORD("client"), content(&value));
    if (options.count != NULL) {
        value.used = 0;
        if (c->trouble != NULL) put(&value, view_of(c->trouble)); else put_number(&value, c->visits);
        put_line(to, html, WORD("visits"), content(&value));
    }
    if (options.sibling != NULL) {
        value.used = 0;
        put_sibling(&value, c);
        put_line(to, html, WORD("sibling"), content(&value));
    }
    if (html) PUT(to, "</table>\n");
}

/* --- one connection ------------------------------------------------------------------------------------------------ */

static void log_request(const struct connection *c, int status, usize size) {
    char buffer[512];
    struct text line = TEXT(buffer);
    struct view path = c->request.path;
    put_address(&line, c->address);
    PUT(&line, " ");
    put(&line, c->request.method.size ? c->request.method : WORD("-"));
    PUT(&line, " ");
    if (path.size > 256) path.size = 256;
    put_plain(&line, path.size ? path : WORD("-"));
    PUT(&line, " ");
    put_number(&line, (u64)status);
    PUT(&line, " ");
    put_number(&line, (u64)size);
    PUT(&line, "\n");
    say(1, content(&line));
}

static void finish(struct connection *c) {
    sys_close(c->client);
    if (c->state == ASKING) sys_close(c->sibling);
    c->state = FREE;
}

static void respond(struct connection *c, int status) {
    static char buffer[BODY_SIZE];
    struct text body = TEXT(buffer);
    int page = status == 200 && same(c->request.path, WORD("/"));
    if (page) put_page(&body, c);
    else if (status == 200 && same(c->request.path, WORD("/hello"))) {
        PUT(&body, "hello from ");
        put_plain(&body, view_of(machine.nodename));
        PUT(&body, "\n");
    } else if (status == 200) PUT(&body, "ok\n");
    else { put(&body, reason(status)); PUT(&body, "\n"); }
    if (body.full) { status = 500; page = 0; body.used = 0; PUT(&body, "the page is too long\n"); }
    struct text out = TEXT(c->sending);
    put_head(&out, status, page && c->request.html, body.used);
    if (!same(c->request.method, WORD("HEAD"))) put(&out, content(&body));
    c->sending_size = out.used;
    c->sent = 0;
    c->state = WRITING;
    c->deadline = sys_milliseconds() + PATIENCE;
    log_request(c, status, body.used);
}

static void refuse(struct connection *c, int status) {
    c->request = (struct request){{NULL, 0}, {NULL, 0}, 0};
    respond(c, status);
}

static void ask_sibling(struct connection *c) {
    c->answered_size = 0;
    c->connected = 0;
    isize fd = call(&options.place);
    if (fd < 0) { respond(c, 200); return; }
    c->sibling = (int)fd;
    c->state = ASKING;
    c->deadline = sys_milliseconds() + SIBLING_PATIENCE;
}

static void answered(struct connection *c) {
    sys_close(c->sibling);
    respond(c, 200);
}

static void hear_sibling(struct connection *c) {
    if (!c->connected) {
        char buffer[1024];
        struct text request = TEXT(buffer);
        if (sys_socket_error(c->sibling) != 0) { answered(c); return; }
        put_request(&request, &options.place, options.place.path.size ? options.place.path : WORD("/hello"));
        /* A new connection takes a request of this size in one piece; anything else counts as unreachable. */
        if (request.full || sys_write(c->sibling, request.data, request.used) != (isize)request.used) { answered(c); return; }
        c->connected = 1;
        return;
    }
    if (c->answered_size == ANSWER_SIZE) { answered(c); return; }
    isize got = sys_read(c->sibling, c->answered + c->answered_size, ANSWER_SIZE - c->answered_size);
    if (got == -EAGAIN || got == -EINTR) return;
    if (got > 0) c->answered_size += (usize)got;
    else answered(c);
}

static void serve(struct connection *c, usize head) {
    int status = parse_request((struct view){c->received, head}, &c->request);
    if (status != 200) { refuse(c, status); return; }
    int get = same(c->request.method, WORD("GET"));
    if (!get && !same(c->request.method, WORD("HEAD"))) { respond(c, 405); return; }
    int root = same(c->request.path, WORD("/"));
    if (!root && !same(c->request.path, WORD("/hello")) && !same(c->request.path, WORD("/healthz"))) { respond(c, 404); return; }
    if (root && options.count != NULL) {
        if (get) count_visit(c);
        else c->trouble = "are not counted by HEAD";
    }
    if (root && options.sibling != NULL) ask_sibling(c);
    else respond(c, 200);
}

static void hear_client(struct connection *c) {
    isize got = sys_read(c->client, c->received + c->received_size, REQUEST_SIZE - c->received_size);
    if (got == -EAGAIN || got == -EINTR) return;
    if (got <= 0) { finish(c); return; }
    c->received_size += (usize)got;
    usize head = head_size((struct view){c->received, c->received_size});
    if (head) serve(c, head);
    else if (c->received_size == REQUEST_SIZE) refuse(c, 431);
}

static void tell_client(struct connection *c) {
    isize wrote = sys_write(c->client, c->sending + c->sent, c->sending_size - c->sent);
    if (wrote == -EAGAIN || wrote == -EINTR) return;
    if (wrote < 0) { finish(c); return; }
    c->sent += (usize)wrote;
    if (c->sent < c->sending_size) return;
    /* Closing while the client still sends would reset the connection and could take the answer with it (RFC 9112, 9.6). */
    sys_shutdown(c->client, SHUT_WR);
    c->state = DRAINING;
    c->deadline = sys_milliseconds() + LINGER;
}

static void drain_client(struct connection *c) {
    isize got = sys_read(c->client, c->received, REQUEST_SIZE);
    if (got == 0 || (got < 0 && got != -EAGAIN && got != -EINTR)) finish(c);
}

static void expire(struct connection *c) {
    if (c->state == ASKING) { c->answered_size = 0; answered(c); }
    else if (c->state == READING && c->received_size) refuse(c, 408);
    else finish(c);
}

/* --- the server ---------------------------------------------------------------------------------------------------- */

/* Return a free entry; when there is none, the longest-waiting of those that only listen to their client is given up. */
static struct connection *vacancy(void) {
    struct connection *oldest = NULL;
    for (int i = 0; i < CONNECTIONS; i++) {
        struct connection *c = &table[i];
        if (c->state == FREE) return c;
        if ((c->state == READING || c->state == DRAINING) && (oldest == NULL || c->since < oldest->since)) oldest = c;
    }
    if (oldest != NULL) finish(oldest);
    return oldest;
}

/* Take one connection off the queue. Return 0 when nothing more can be taken now. */
static int welcome(int listener) {
    struct sockaddr_in from = {0, 0, 0, {0}};
    isize fd = sys_accept(listener, &from);
    if (fd == -EINTR) return 1;
    if (fd < 0) return 0;
    struct connection *c = vacancy();
    if (c == NULL) { sys_close((int)fd); return 0; }
    c->state = READING;
    c->client = (int)fd;
    c->address = from.address;
    c->request = (struct request){{NULL, 0}, {NULL, 0}, 0};
    c->received_size = 0;
    c->answered_size = 0;
    c->since = sys_milliseconds();
    c->deadline = c->since + PATIENCE;
    return 1;
}

static void wait_for(struct pollfd *entry, const struct connection *c) {
    switch (c->state) {
    case READING: case DRAINING: *entry = (struct pollfd){c->client, POLLIN, 0}; return;
    case WRITING: *entry = (struct pollfd){c->client, POLLOUT, 0}; return;
    case ASKING: *entry = (struct pollfd){c->sibling, c->connected ? POLLIN : POLLOUT, 0}; return;
    case FREE: *entry = (struct pollfd){-1, 0, 0}; return;
    }
}

static void advance(struct connection *c) {
    switch (c->state) {
    case READING: hear_client(c); return;
    case ASKING: hear_sibling(c); return;
    case WRITING: tell_client(c); return;
    case DRAINING: drain_client(c); return;
    case FREE: return;
    }
}

__attribute__((noreturn)) static void turn_forever(int listener) {
    static struct pollfd fds[CONNECTIONS + 1];
    for (;;) {
        u64 now = sys_milliseconds(), wait = 60000;
        for (int i = 0; i < CONNECTIONS; i++) {
            struct connection *c = &table[i];
            if (c->state != FREE && c->deadline <= now) expire(c);
            if (c->state != FREE && c->deadline - now < wait) wait = c->deadline > now ? c->deadline - now : 0;
            wait_for(&fds[i], c);
        }
        fds[CONNECTIONS] = (struct pollfd){listener, POLLIN, 0};
        if (sys_poll(fds, CONNECTIONS + 1, wait) <= 0) continue;
        for (int i = 0; i < CONNECTIONS; i++) if (fds[i].fd >= 0 && fds[i].revents) advance(&table[i]);
        if (fds[CONNECTIONS].revents == 0) continue;
        int taken = 0;
        while (taken < CONNECTIONS && welcome(listener)) taken++;
        if (taken == 0) { /* out of descriptors or memory: the queue stays readable, so wait instead of spinning */
            struct pollfd none = {-1, 0, 0};
            sys_poll(&none, 1, 50);
        }
    }
}

__attribute__((noreturn)) static void fail(const char *what, isize result) {
    char buffer[256];
    struct text line = TEXT(buffer);
    PUT(&line, "page: ");
    put_plain(&line, view_of(what));
    if (result < 0) { PUT(&line, ": errno "); put_number(&line, (u64)-result); }
    PUT(&line, "\n");
    say(2, content(&line));
    sys_exit(1);
}

__attribute__((noreturn)) static void listen_forever(void) {
    struct sockaddr_in here = {AF_INET, (u16)((options.port >> 8) | (options.port << 8)), 0, {0}};
    char buffer[128];
    struct text line = TEXT(buffer);
    isize result, listener = sys_socket();
    if (listener < 0) fail("socket", listener);
    sys_reuse_address((int)listener);
    if ((result = sys_bind((int)listener, &here)) < 0) fail("the port cannot be bound", result);
    if ((result = sys_listen((int)listener, 128)) < 0) fail("listen", result);
    PUT(&line, "page: ");
    put_plain(&line, view_of(machine.nodename));
    PUT(&line, " answers on port ");
    put_number(&line, options.port);
    PUT(&line, "\n");
    say(1, content(&line));
    turn_forever((int)listener);
}

/* --- the client ---------------------------------------------------------------------------------------------------- */

/* Wait for `events` on `fd` until `deadline`. Return 0 when it has passed. */
static int ready(int fd, short events, u64 deadline) {
    for (;;) {
        u64 now = sys_milliseconds();
        if (now >= deadline) return 0;
        struct pollfd entry = {fd, events, 0};
        isize result = sys_poll(&entry, 1, deadline - now);
        if (result > 0) return 1;
        if (result < 0 && result != -EINTR) return 0;
    }
}

/* Ask once, print the body that comes back, and exit 0 when the status was 200, else 1. */
__attribute__((noreturn)) static void ask(const char *where) {
    static char buffer[65536];
    char request_buffer[2048];
    struct text request = TEXT(request_buffer), answer = TEXT(buffer);
    struct place place;
    struct view body;
    int status;
    if (!parse_place(view_of(where), &place)) fail("ask wants NAME:PORT[/PATH]", 0);
    put_request(&request, &place, place.path);
    if (request.full) fail("the path is too long", 0);
    u64 deadline = sys_milliseconds() + PATIENCE;
    isize fd = call(&place);
    if (fd == -ENOENT) fail("nobody knows that name: /etc/hosts does not hold it", 0);
    if (fd < 0) fail("cannot connect", fd);
    if (!ready((int)fd, POLLOUT, deadline)) fail("no connection in 10 s", 0);
    int error = sys_socket_error((int)fd);
    if (error) fail("cannot connect", -error);
    isize result = sys_write((int)fd, request.data, request.used);
    if (result != (isize)request.used) fail("cannot send the request", result);
    while (answer.used < answer.size) {
        if (!ready((int)fd, POLLIN, deadline)) fail("no whole answer in 10 s", 0);
        result = sys_read((int)fd, answer.data + answer.used, answer.size - answer.used);
        if (result == -EAGAIN || result == -EINTR) continue;
        if (result < 0) fail("cannot read the answer", result);
        if (result == 0) break;
        answer.used += (usize)result;
    }
    if (!parse_answer(content(&answer), &status, &body)) fail("what came back is not HTTP", 0);
    say(1, body);
    if (answer.used == answer.size) fail("the answer is longer than 64 KiB", 0);
    sys_exit(status == 200 ? 0 : 1);
}

/* --- the command line ---------------------------------------------------------------------------------------------- */

static const char usage[] =
    "usage: page [--port N] [--greeting FILE] [--count FILE] [--sibling NAME:PORT]\n"
    "       page ask NAME:PORT[/PATH]\n\n"
    "Serve a page that says which container answers, or ask another page and print what it says.\n\n"
    "  --port N             listen on TCP port N (default: $PORT, or 8080)\n"
    "  --greeting FILE      begin the page with the text in FILE\n"
    "  --count FILE         count visits in FILE, durably\n"
    "  --sibling NAME:PORT  ask NAME, as /etc/hosts knows it, and show what it says\n";

__attribute__((noreturn)) static void misuse(void) {
    say(2, WORD(usage));
    sys_exit(64);
}

static void set_port(const char *text) {
    u64 value;
    if (!number(view_of(text), 65535, &value) || value == 0) fail("the port is not a number from 1 to 65535", 0);
    options.port = (u16)value;
}

__attribute__((used, noreturn)) void begin(long *stack) {
    long argc = stack[0];
    char **argv = (char **)(stack + 1), **environment = argv + argc + 1;
    options.port = 8080; /* set here, so that no initialised data has to be aligned in the file */
    for (; *environment != NULL; environment++)
        if (starts_with(view_of(*environment), WORD("PORT="))) set_port(*environment + 5);
    sys_signal(SIGPIPE, SIG_IGN);
    sys_signal(SIGTERM, end);
    sys_signal(SIGINT, end);
    sys_uname(&machine);
    if (argc >= 2 && same(view_of(argv[1]), WORD("ask"))) {
        if (argc != 3) misuse();
        ask(argv[2]);
    }
    for (long i = 1; i < argc; i++) {
        struct view name = view_of(argv[i]);
        if (same(name, WORD("--help"))) { say(1, WORD(usage)); sys_exit(0); }
        if (i + 1 >= argc) misuse();
        const char *value = argv[++i];
        if (same(name, WORD("--port"))) set_port(value);
        else if (same(name, WORD("--greeting"))) options.greeting = value;
        else if (same(name, WORD("--count"))) options.count = value;
        else if (same(name, WORD("--sibling"))) {
            if (!parse_place(view_of(value), &options.place)) fail("--sibling wants NAME:PORT[/PATH]", 0);
            options.sibling = value;
        } else misuse();
    }
    listen_forever();
}
