/* The little JSON that the control socket speaks: flat objects in, text out. */
#ifndef WARMBOOT_JSON_H
#define WARMBOOT_JSON_H

#include <stdbool.h>
#include <stddef.h>

/* A member of a request: the text of a string, or a number, or true (1) and false (0). */
struct member {
    char name[32];
    char text[64]; /* "" unless it is a string */
    bool is_text;
    double number;
};

enum { MAX_MEMBERS = 16 };

struct object {
    struct member members[MAX_MEMBERS];
    size_t count;
};

/* Read one flat object without escapes in its strings; NULL when it is one, else what is wrong with it. */
const char *json_read(const char *text, struct object *object);

/* The member of this name, or NULL. */
const struct member *json_member(const struct object *object, const char *name);

/* Text that grows. `failed`: there was no memory for it. */
struct text {
    char *data;
    size_t length, room;
    bool failed;
};

void text_add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Add a string with its quotes and escapes. */
void text_add_quoted(struct text *text, const char *value);

#endif
