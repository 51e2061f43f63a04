/* Where another container is: `NAME:PORT/PATH` taken apart, and NAME looked up in /etc/hosts, which the engine writes. */
#ifndef NAME_H
#define NAME_H

#include "text.h"

struct place { struct view host; u16 port; struct view path; };

/* Take `HOST:PORT[/PATH]` apart. Return 0 when it has another form, or holds what a request line must not hold. */
static int parse_place(struct view text, struct place *place) {
    for (usize i = 0; i < text.size; i++) if (text.data[i] <= 32 || text.data[i] == 127) return 0;
    struct view rest = text;
    place->host = take(&rest, ':');
    struct view port = take(&rest, '/');
    u64 value;
    if (place->host.size == 0 || !number(port, 65535, &value) || value == 0) return 0;
    place->port = (u16)value;
    usize before = place->host.size + 1 + port.size;
    place->path = skip(text, before);
    return 1;
}

/* Read four numbers with dots between them. Return 0 when `text` is anything else. */
static int parse_address(struct view text, u32 *address) {
    u8 *part = (u8 *)address;
    struct view rest = text;
    for (int i = 0; i < 4; i++) {
        u64 value;
        struct view piece = take(&rest, '.');
        if (piece.size > 3 || !number(piece, 255, &value)) return 0;
        part[i] = (u8)value;
    }
    /* take() ends a text with and without a last dot alike: compare the lengths to tell them apart. */
    char canonical[16];
    struct text back = TEXT(canonical);
    put_address(&back, *address);
    return same(content(&back), text);
}

/* Read at most `to->size` bytes of a file. Return 0, a negative errno, or 1 when the file is longer than that. */
static isize read_file(const char *path, struct text *to) {
    isize fd = sys_open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
    if (fd < 0) return fd;
    isize got = 0;
    while (to->used < to->size) {
        got = sys_read((int)fd, to->data + to->used, to->size - to->used);
        if (got == -EINTR) continue;
        if (got <= 0) break;
        to->used += (usize)got;
    }
    char more;
    if (got > 0) got = sys_read((int)fd, &more, 1);
    sys_close((int)fd);
    return got < 0 ? got : got > 0;
}

/* Find the IPv4 address of `host`, in network order. Return 0 when neither it nor /etc/hosts says one. */
static int resolve(struct view host, u32 *address) {
    static char buffer[16384];
    struct text file = TEXT(buffer);
    if (parse_address(host, address)) return 1;
    if (read_file("/etc/hosts", &file) < 0) return 0;
    struct view rest = content(&file);
    while (rest.size) {
        struct view line = take(&rest, '\n');
        line = take(&line, '#');
        u32 found = 0;
        int first = 1, usable = 0;
        while (line.size) {
            if (blank(line.data[0])) { line = skip(line, 1); continue; }
            usize size = 0;
            while (size < line.size && !blank(line.data[size])) size++;
            struct view word = {line.data, size};
            line = skip(line, size);
            if (first) { usable = parse_address(word, &found); first = 0; }
            else if (usable && same_word(word, host)) { *address = found; return 1; }
        }
    }
    return 0;
}

/* Begin to connect to `place`. Return a non-blocking socket or a negative errno; -ENOENT: nobody knows the name. */
static isize call(const struct place *place) {
    struct sockaddr_in to = {AF_INET, (u16)((place->port >> 8) | (place->port << 8)), 0, {0}};
    if (!resolve(place->host, &to.address)) return -ENOENT;
    isize fd = sys_socket();
    if (fd < 0) return fd;
    isize result = sys_connect((int)fd, &to);
    if (result < 0 && result != -EINPROGRESS && result != -EINTR) { sys_close((int)fd); return result; }
    return fd;
}

static void put_request(struct text *to, const struct place *place, struct view path) {
    PUT(to, "GET ");
    put(to, path.size ? path : WORD("/"));
    PUT(to, " HTTP/1.1\r\nHost: ");
    put(to, place->host);
    PUT(to, ":");
    put_number(to, place->port);
    PUT(to, "\r\nUser-Agent: page\r\nConnection: close\r\n\r\n");
}

#endif
