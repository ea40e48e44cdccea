/* The GPU memory that we caught: addresses that stay reserved, whatever physical memory is behind them. */
#ifndef WARMBOOT_REGIONS_H
#define WARMBOOT_REGIONS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_api.h"

enum { MAX_DEVICES = 64 };

/* One chunk of a region while its memory is away. */
struct chunk {
    uint64_t at;  /* where it lies in the store, bytes; CHUNK_ZERO: it was all zeros, and is not stored */
    uint32_t crc; /* CRC32C of what is stored */
};
#define CHUNK_ZERO UINT64_MAX

/* One allocation. */
struct region {
    CUdeviceptr at;
    size_t bytes; /* rounded up to the device's granularity */
    int device;
    CUcontext context; /* in which it was made; any context of the device would do */
    CUmemGenericAllocationHandle handle;
    bool mapped;
    struct chunk *chunks; /* while away, else NULL */
    size_t chunk_count;
};

/* What we know of a device. */
struct device {
    bool known;
    CUcontext context;     /* one in which we may call the driver */
    size_t granularity;    /* bytes */
    uint64_t accessors;    /* bit d: device d was given access to this one's memory */
    uint64_t before_bytes; /* in use on the whole GPU when our first allocation came */
};

/* All of it, guarded by `lock`. */
struct regions {
    pthread_mutex_t lock;
    struct region **sorted; /* by address */
    size_t count, room;
    struct device devices[MAX_DEVICES];
};

extern struct regions regions;

/* Allocate in the current context. CUDA_ERROR_NOT_SUPPORTED: this device has no virtual memory management;
 * CUDA_ERROR_INVALID_CONTEXT: there is none. Takes the lock. */
CUresult regions_allocate(CUdeviceptr *at, size_t bytes);

/* Free what begins at `at`, once the GPU is done with it; false: it is none of ours. Takes the lock. */
bool regions_free(CUdeviceptr at, CUresult *result);

/* What was freed while a stream was being captured goes now: every GPU is idle. The lock is held. */
void regions_discard_freed(void);

/* Whether `at` lies within a region of ours. Takes the lock. */
bool regions_contain(CUdeviceptr at);

/* Device `who` may access `whose` memory from now on, or no more: existing regions and new ones. Takes the lock. */
CUresult regions_set_access(int who, int whose, bool allowed);

/* Put physical memory behind a region, accessible as it was; `call` names what failed. The lock is held. */
CUresult region_map(struct region *region, const char **call);

/* Take it away again. The lock is held. */
CUresult region_unmap(struct region *region, const char **call);

#endif
