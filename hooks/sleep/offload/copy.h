/* Copies between GPU memory and the store: threads with pinned rings and streams of their own, checksums on the way. */
#ifndef WARMBOOT_COPY_H
#define WARMBOOT_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "failure.h"
#include "regions.h"

enum { MAX_DAMAGED = 8 };

/* Where regions' contents lie while they are away: ordinary memory, never pinned. */
struct store {
    char *base;         /* NULL: nothing is away */
    size_t room;        /* bytes of address space */
    uint64_t used;      /* bytes handed out */
    size_t chunk_bytes; /* of every chunk but a region's last */
    bool verified;      /* chunks have checksums */
};

/* A chunk whose checksum was another one on the way back. */
struct damage {
    int device;
    CUdeviceptr at;
    size_t bytes;
};

/* What a copy does, and what it found. */
struct copy {
    bool out;        /* from the GPU to the store, else back */
    bool look;       /* out: chunks of zeros are found here, by the host */
    unsigned threads; /* for each device; 0: as many as there are processors, from 2 to 16 */
    struct store *store;
    double prepare_s, copy_s;
    uint64_t copied_bytes;
    size_t damaged_count;
    struct damage damaged[MAX_DAMAGED]; /* the first ones */
    struct worker *workers; /* what the threads had pinned, until `copy_clean` */
};

/* Copy every region that has chunks. False: some of it failed, and what lies where is undefined. The lock is held. */
bool copy_run(struct copy *copy, struct failure *why);

/* Give the pinned buffers and the streams back: after the answer where nothing but time is at stake. */
void copy_clean(struct copy *copy);

/* How many threads a choice of them means. */
unsigned threads_of(unsigned chosen);

/* Seconds of a clock that never jumps back. */
double now_s(void);

#endif
