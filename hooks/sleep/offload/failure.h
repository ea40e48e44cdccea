/* Why something failed, in the words of an answer. */
#ifndef WARMBOOT_FAILURE_H
#define WARMBOOT_FAILURE_H

#include <stdbool.h>
#include <stddef.h>

#include "cuda_api.h"

struct failure {
    const char *code;  /* "cuda", "checksum", ...: what a program tells apart */
    char detail[320];  /* for people */
    char fields[1024]; /* more members of the answer's JSON object, each with a comma before it */
};

/* Each of these fills `why` in and returns false, so that a caller can return it. */
bool fail(struct failure *why, const char *code, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool fail_host_memory(struct failure *why, size_t wanted_bytes, const char *what);
bool fail_cuda(struct failure *why, const char *call, CUresult result);

/* Add members to the answer: `add_field(why, "\"device\": %d", 0)`. What does not fit is left out. */
void add_field(struct failure *why, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
