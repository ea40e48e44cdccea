/* A CUDA driver without a GPU: what the files of the stub share.
 *
 * Names, structures and numbers are those of cuda.h (CUDA 12 and 13); only what is used stands here. "Device memory" is
 * host memory at the same address: physical memory is a memfd, a reserved address without it is PROT_NONE, so a touch of
 * memory that is away ends the process, as an illegal access ends a CUDA context.
 */
#ifndef FAKE_CUDA_STUB_H
#define FAKE_CUDA_STUB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PUBLIC __attribute__((visibility("default")))
#define GRANULARITY ((size_t)2 << 20)
#define MAX_DEVICES 8

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef unsigned long long CUmemGenericAllocationHandle;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_ECC_UNCORRECTABLE = 214,
    CUDA_ERROR_INVALID_PTX = 218,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
    CUDA_ERROR_PEER_ACCESS_NOT_ENABLED = 705,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
};

typedef struct {
    int type; /* CU_MEM_LOCATION_TYPE_DEVICE is 1 */
    int id;
} CUmemLocation;

typedef struct {
    int type; /* CU_MEM_ALLOCATION_TYPE_PINNED is 1 */
    int requestedHandleTypes;
    CUmemLocation location;
    void *win32HandleMetaData;
    struct {
        unsigned char compressionType;
        unsigned char gpuDirectRDMACapable;
        unsigned short usage;
        unsigned char reserved[4];
    } allocFlags;
} CUmemAllocationProp;

typedef struct {
    CUmemLocation location;
    int flags; /* CU_MEM_ACCESS_FLAGS_PROT_NONE 0, READ 1, READWRITE 3 */
} CUmemAccessDesc;

typedef struct CUstream_st *CUstream;

/* A device's primary context, the only kind there is here. */
typedef struct CUctx_st {
    int device;
    int retained;
    _Atomic int sticky;  /* what every call returns after an error that ruined the context */
    _Atomic unsigned peers; /* devices that this context may reach: a bit each */
    CUstream null_stream;
} *CUcontext;

/* Faults: FAKE_CUDA_<name> in the environment, or fakeCudaFault(name, value) while the program runs. A value "3" means the
 * third call, counted from when the fault was set; "3+" the third and all later ones; "" or "0" none. */
enum fault {
    FAULT_RESERVE,      /* no addresses at cuMemAddressReserve */
    FAULT_CREATE,       /* no memory at cuMemCreate */
    FAULT_MAP,          /* cuMemMap fails */
    FAULT_ACCESS,       /* cuMemSetAccess fails */
    FAULT_UNMAP,        /* cuMemUnmap fails */
    FAULT_RELEASE,      /* cuMemRelease fails */
    FAULT_DTOH,         /* an asynchronous copy out fails, and the context with it */
    FAULT_HTOD,         /* an asynchronous copy in fails, and the context with it */
    FAULT_FLIP_OUT,     /* an asynchronous copy out flips a bit */
    FAULT_FLIP_IN,      /* an asynchronous copy in flips a bit */
    FAULT_LAUNCH,       /* cuLaunchKernel fails */
    FAULT_PINNED,       /* no pinned memory at cuMemHostAlloc */
    FAULT_STREAM,       /* no stream at cuStreamCreate */
    FAULT_PTX,          /* the driver cannot compile the module's text */
    FAULT_NO_VMM,       /* the device has no virtual memory management */
    FAULT_SYNC_HANG,    /* cuCtxSynchronize returns only when the fault is taken back */
    FAULT_SYNC_CAPTURE, /* cuCtxSynchronize refuses because a stream is being captured */
    FAULT_DIRTY,        /* what cuMemCreate gives has somebody's bytes in it, not zeros */
    FAULT_SLOW_COPY_US, /* a number: microseconds that every asynchronous copy takes */
    FAULTS
};

bool fault_hits(enum fault which);
long fault_value(enum fault which);
PUBLIC int fakeCudaFault(const char *name, const char *value);

/* control.c */
CUresult need_init(void);
CUresult need_context(CUcontext *context);
int device_count(void);
CUcontext primary_context(int device);

/* memory.c */
void memory_read_lock(void);
void memory_unlock(void);
bool device_can_touch(int device, CUdeviceptr address, size_t bytes); /* under the lock */
bool is_device_memory(CUdeviceptr address);                           /* under the lock */
void context_comes(int device);
PUBLIC size_t fakeCudaUsed(int device);
PUBLIC size_t fakeCudaTotal(int device);

/* pinned.c */
bool is_pinned(const void *address, size_t bytes);

/* work.c */
CUresult stream_open(CUcontext context, bool blocking, CUstream *stream);
CUresult run_context(CUcontext context, bool only_blocking);

#endif
