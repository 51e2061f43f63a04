/* Bounded text: every string that page builds or takes apart goes through here.
 *
 * A `struct text` never writes past its buffer: what does not fit is dropped and `full` is set. A `struct view` is a
 * piece of somebody else's buffer; nothing here relies on a NUL byte at the end of it.
 */
#ifndef TEXT_H
#define TEXT_H

#include "sys.h"

struct text { char *data; usize size; usize used; int full; };
struct view { const char *data; usize size; };

#define TEXT(buffer) ((struct text){(buffer), sizeof(buffer), 0, 0})
#define WORD(literal) ((struct view){(literal), sizeof(literal) - 1})

/* gcc may turn loops and assignments into calls of these two, even without a C library. */
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

static struct view view_of(const char *string) {
    usize size = 0;
    while (string[size] != 0) size++;
    return (struct view){string, size};
}

static struct view content(const struct text *text) { return (struct view){text->data, text->used}; }

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

static int same(struct view a, struct view b) {
    if (a.size != b.size) return 0;
    for (usize i = 0; i < a.size; i++) if (a.data[i] != b.data[i]) return 0;
    return 1;
}

static int same_word(struct view a, struct view b) { /* ASCII case does not matter */
    if (a.size != b.size) return 0;
    for (usize i = 0; i < a.size; i++) if (lower(a.data[i]) != lower(b.data[i])) return 0;
    return 1;
}

static int contains(struct view text, struct view word) {
    for (usize i = 0; i + word.size <= text.size; i++)
        if (same_word((struct view){text.data + i, word.size}, word)) return 1;
    return 0;
}

static int starts_with(struct view text, struct view word) {
    return text.size >= word.size && same((struct view){text.data, word.size}, word);
}

static struct view skip(struct view text, usize count) {
    if (count > text.size) count = text.size;
    return (struct view){text.data + count, text.size - count};
}

/* Take what stands before the next `separator` off the front of `rest`, and the separator with it. */
static struct view take(struct view *rest, char separator) {
    usize size = 0;
    while (size < rest->size && rest->data[size] != separator) size++;
    struct view piece = {rest->data, size};
    *rest = skip(*rest, size + 1);
    return piece;
}

static int blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static struct view trim(struct view text) {
    while (text.size && blank(text.data[0])) text = skip(text, 1);
    while (text.size && blank(text.data[text.size - 1])) text.size--;
    return text;
}

/* Read all of `text` as a decimal number of at most `most`. Return 0 when it is anything else. */
static int number(struct view text, u64 most, u64 *value) {
    u64 result = 0;
    if (text.size == 0) return 0;
    for (usize i = 0; i < text.size; i++) {
        if (text.data[i] < '0' || text.data[i] > '9') return 0;
        u64 digit = (u64)(text.data[i] - '0');
        if (result > (most - digit) / 10) return 0;
        result = result * 10 + digit;
    }
    *value = result;
    return 1;
}

static void put(struct text *to, struct view piece) {
    for (usize i = 0; i < piece.size; i++) {
        if (to->used == to->size) { to->full = 1; return; }
        to->data[to->used++] = piece.data[i];
    }
}

#define PUT(to, literal) put((to), WORD(literal))

static void put_number(struct text *to, u64 value) {
    char digits[20];
    usize first = sizeof digits;
    do digits[--first] = (char)('0' + value % 10); while (value /= 10);
    put(to, (struct view){digits + first, sizeof digits - first});
}

static void put_address(struct text *to, u32 address) { /* network order */
    const u8 *part = (const u8 *)&address;
    for (int i = 0; i < 4; i++) { if (i) PUT(to, "."); put_number(to, part[i]); }
}

/* Put foreign text: control characters become '?', so that nobody's terminal obeys them. */
static void put_plain(struct text *to, struct view piece) {
    for (usize i = 0; i < piece.size; i++) {
        u8 c = (u8)piece.data[i];
        if (c < 32 || c == 127) PUT(to, "?"); else put(to, (struct view){piece.data + i, 1});
    }
}

/* Put foreign text into HTML, as content or as a quoted attribute. */
static void put_html(struct text *to, struct view piece) {
    for (usize i = 0; i < piece.size; i++) {
        switch (piece.data[i]) {
        case '&': PUT(to, "&amp;"); break;
        case '<': PUT(to, "&lt;"); break;
        case '>': PUT(to, "&gt;"); break;
        case '"': PUT(to, "&quot;"); break;
        case '\'': PUT(to, "&#39;"); break;
        default: put_plain(to, (struct view){piece.data + i, 1});
        }
    }
}

/* Write all of `text` to `fd`, which blocks; a reader that is gone is nobody's loss. */
static void say(int fd, struct view text) {
    while (text.size) {
        isize wrote = sys_write(fd, text.data, text.size);
        if (wrote == -EINTR) continue;
        if (wrote <= 0) return;
        text = skip(text, (usize)wrote);
    }
}

#endif
