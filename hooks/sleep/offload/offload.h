/* The two transitions: GPU memory put aside, and brought back; and what there is to say about it. */
#ifndef WARMBOOT_OFFLOAD_H
#define WARMBOOT_OFFLOAD_H

#include <stdbool.h>
#include <stddef.h>

#include "json.h"

/* What a request may choose. */
struct choices {
    unsigned threads;   /* for each device; 0: as many as there are processors, from 2 to 16 */
    size_t chunk_bytes; /* a multiple of 64 KiB */
    bool verify;
    enum { ZEROS_GPU, ZEROS_HOST, ZEROS_NONE } zeros;
    double idle_s; /* seconds to wait for an idle GPU */
};

extern const struct choices default_choices;

/* Each writes an answer, one JSON object without the line's end. One at a time: the server's thread calls them. */
void answer_status(struct text *answer);
void answer_offload(const struct choices *choices, struct text *answer);
void answer_reload(const struct choices *choices, struct text *answer);
void answer_failure(const char *code, const char *detail, struct text *answer);

/* Give the host memory of a finished reload back: after its answer is out, because it takes a while. */
void give_back(void);

/* Something of ours cannot work in this process: everything passes through from now on. False: it was off
 * already, for a reason that stays. */
bool turn_off(const char *reason);

/* Why, or NULL. */
const char *off_reason(void);

/* An IPC handle was asked for, and refused. */
void count_ipc_refused(void);

#endif
