/* Fills failures in. */
#include "failure.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool fail(struct failure *why, const char *code, const char *format, ...) {
    why->code = code;
    why->fields[0] = '\0';
    va_list rest;
    va_start(rest, format);
    vsnprintf(why->detail, sizeof why->detail, format, rest);
    va_end(rest);
    return false;
}

bool fail_host_memory(struct failure *why, size_t wanted_bytes, const char *what) {
    fail(why, "out_of_host_memory", "no host memory for %s: %zu bytes are wanted", what, wanted_bytes);
    add_field(why, "\"wanted_bytes\": %zu", wanted_bytes);
    return false;
}

bool fail_cuda(struct failure *why, const char *call, CUresult result) {
    char text[96];
    fail(why, "cuda", "%s: %s", call, cuda_error_text(result, text, sizeof text));
    add_field(why, "\"call\": \"%s\", \"code\": %d, \"name\": \"%.*s\"", call, result, (int)strcspn(text, " "), text);
    return false;
}

void add_field(struct failure *why, const char *format, ...) {
    size_t used = strlen(why->fields);
    char more[512];
    va_list rest;
    va_start(rest, format);
    int length = vsnprintf(more, sizeof more, format, rest);
    va_end(rest);
    if (length >= 0 && (size_t)length < sizeof more && used + (size_t)length + 3 < sizeof why->fields)
        snprintf(why->fields + used, sizeof why->fields - used, ", %s", more);
}
