/* The little of HTTP/1.1 (RFC 9112) that page speaks: one request on a connection, one answer, then the end.
 *
 * A request comes from anybody: its head is read only when it is complete, is bounded, and holds no control characters.
 */
#ifndef HTTP_H
#define HTTP_H

#include "text.h"

struct request { struct view method, path; int html; };

/* Return how many bytes the head takes with its empty line, or 0 while it is incomplete. */
static usize head_size(struct view text) {
    for (usize i = 0; i < text.size; i++) {
        if (text.data[i] != '\n') continue;
        if (i + 1 < text.size && text.data[i + 1] == '\n') return i + 2;
        if (i + 2 < text.size && text.data[i + 1] == '\r' && text.data[i + 2] == '\n') return i + 3;
    }
    return 0;
}

/* Find the value of a header field in a head without its first line; NULL data when it is not there. */
static struct view header(struct view head, struct view name) {
    while (head.size) {
        struct view line = take(&head, '\n');
        struct view field = take(&line, ':');
        if (same_word(field, name)) return trim(line);
    }
    return (struct view){NULL, 0};
}

static int token(struct view text) { /* RFC 9110, 5.6.2, narrowed to letters: every registered method is that */
    if (text.size == 0 || text.size > 16) return 0;
    for (usize i = 0; i < text.size; i++) if (text.data[i] < 'A' || text.data[i] > 'Z') return 0;
    return 1;
}

/* Read a complete head. Return 200 when it can be answered, or the status to refuse it with. */
static int parse_request(struct view head, struct request *request) {
    for (usize i = 0; i < head.size; i++) {
        u8 c = (u8)head.data[i];
        if (c == '\r') { if (i + 1 < head.size && head.data[i + 1] == '\n') continue; return 400; }
        if ((c < 32 && c != '\n' && c != '\t') || c == 127) return 400;
    }
    struct view first = take(&head, '\n');
    if (first.size && first.data[first.size - 1] == '\r') first.size--;
    request->method = take(&first, ' ');
    struct view target = take(&first, ' ');
    struct view version = first;
    if (!token(request->method) || target.size == 0) return 400;
    if (!starts_with(version, WORD("HTTP/")) || version.size != 8) return 400;
    if (!starts_with(version, WORD("HTTP/1."))) return 505;
    if (version.data[7] == '1' && header(head, WORD("host")).data == NULL) return 400; /* RFC 9112, 3.2 */
    if (starts_with(target, WORD("http://"))) { /* RFC 9112, 3.2.2: a server must accept the absolute form */
        target = skip(target, 7);
        while (target.size && target.data[0] != '/') target = skip(target, 1);
        if (target.size == 0) target = WORD("/");
    }
    if (target.data[0] != '/') return 400;
    request->path = take(&target, '?');
    request->html = contains(header(head, WORD("accept")), WORD("text/html"));
    return 200;
}

/* Split an answer into status and body. Return 0 when it is not the whole head of an HTTP answer. */
static int parse_answer(struct view text, int *status, struct view *body) {
    u64 value;
    usize head = head_size(text);
    if (head == 0 || !starts_with(text, WORD("HTTP/1.")) || text.size < 12 || text.data[8] != ' ') return 0;
    if (!number((struct view){text.data + 9, 3}, 599, &value)) return 0;
    *status = (int)value;
    *body = skip(text, head);
    return 1;
}

static struct view reason(int status) {
    switch (status) {
    case 200: return WORD("OK");
    case 400: return WORD("Bad Request");
    case 404: return WORD("Not Found");
    case 405: return WORD("Method Not Allowed");
    case 408: return WORD("Request Timeout");
    case 431: return WORD("Request Header Fields Too Large");
    case 505: return WORD("HTTP Version Not Supported");
    default: return WORD("Internal Server Error");
    }
}

static void put_head(struct text *to, int status, int html, usize length) {
    PUT(to, "HTTP/1.1 ");
    put_number(to, (u64)status);
    PUT(to, " ");
    put(to, reason(status));
    if (html) PUT(to, "\r\nContent-Type: text/html; charset=utf-8"); else PUT(to, "\r\nContent-Type: text/plain; charset=utf-8");
    PUT(to, "\r\nContent-Length: ");
    put_number(to, (u64)length);
    if (status == 405) PUT(to, "\r\nAllow: GET, HEAD");
    PUT(to, "\r\nVary: Accept\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n");
}

#endif
