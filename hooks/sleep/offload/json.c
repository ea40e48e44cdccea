/* Reads requests and writes answers. */
#include "json.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *skip(const char *at) { return at + strspn(at, " \t\r\n"); }

/* A string without escapes; NULL when it is none, or too long. */
static const char *read_string(const char *at, char *into, size_t room) {
    if (*at++ != '"')
        return NULL;
    size_t length = strcspn(at, "\"\\");
    if (at[length] != '"' || length >= room)
        return NULL;
    memcpy(into, at, length);
    into[length] = '\0';
    return at + length + 1;
}

/* A plain number: C's own reading would take hexadecimals, infinities and a locale's comma. */
static const char *read_number(const char *at, double *number) {
    const char *begin = at;
    double sign = *at == '-' ? -1 : 1, value = 0, unit = 1;
    at += *at == '-';
    for (; *at >= '0' && *at <= '9'; at++)
        value = 10 * value + (*at - '0');
    if (*at == '.')
        for (at++; *at >= '0' && *at <= '9'; at++)
            value += (unit /= 10) * (*at - '0');
    *number = sign * value;
    return at > begin && at[-1] >= '0' && at[-1] <= '9' && strchr(",} \t\r\n", *at) ? at : NULL;
}

static const char *read_value(const char *at, struct member *member) {
    member->text[0] = '\0';
    member->is_text = *at == '"';
    member->number = 0;
    if (member->is_text)
        return read_string(at, member->text, sizeof member->text);
    if (strncmp(at, "true", 4) == 0) {
        member->number = 1;
        return at + 4;
    }
    if (strncmp(at, "false", 5) == 0)
        return at + 5;
    return read_number(at, &member->number);
}

const char *json_read(const char *text, struct object *object) {
    object->count = 0;
    const char *at = skip(text);
    if (*at++ != '{')
        return "it is not a JSON object";
    at = skip(at);
    if (*at == '}')
        return *skip(at + 1) ? "something follows the object" : NULL;
    for (;;) {
        if (object->count == MAX_MEMBERS)
            return "it has too many members";
        struct member *member = &object->members[object->count++];
        at = read_string(skip(at), member->name, sizeof member->name);
        if (at == NULL || *(at = skip(at)) != ':')
            return "a member has no name";
        at = read_value(skip(at + 1), member);
        if (at == NULL)
            return "a value is not a short string, a number, true or false";
        at = skip(at);
        if (*at == '}')
            return *skip(at + 1) ? "something follows the object" : NULL;
        if (*at++ != ',')
            return "a comma is missing";
    }
}

const struct member *json_member(const struct object *object, const char *name) {
    for (size_t i = 0; i < object->count; i++)
        if (strcmp(object->members[i].name, name) == 0)
            return &object->members[i];
    return NULL;
}

void text_add(struct text *text, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0)
        text->failed = true;
    else if (text->length + (size_t)length + 1 > text->room) {
        size_t room = 2 * text->room + (size_t)length + 256;
        char *more = realloc(text->data, room);
        if (more == NULL)
            text->failed = true;
        else {
            text->data = more;
            text->room = room;
        }
    }
    if (!text->failed) {
        vsnprintf(text->data + text->length, text->room - text->length, format, again);
        text->length += (size_t)length;
    }
    va_end(again);
}

void text_add_quoted(struct text *text, const char *value) {
    text_add(text, "\"");
    for (const unsigned char *at = (const unsigned char *)value; *at; at++)
        text_add(text, *at < 0x20 ? "\\u%04x" : *at == '"' || *at == '\\' ? "\\%c" : "%c", *at);
    text_add(text, "\"");
}
