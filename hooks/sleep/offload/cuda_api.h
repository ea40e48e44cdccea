/* What the library calls of the CUDA driver: types, constants and functions, looked up at run time.
 *
 * Written after the reference of the driver API, so that no CUDA header is needed to build:
 * https://docs.nvidia.com/cuda/cuda-driver-api/ (types and constants: "Data types used by CUDA driver"; memory:
 * "Memory Management", "Virtual Memory Management"). The names carry the ABI versions of CUDA 12 and 13 (`_v2`).
 */
#ifndef WARMBOOT_CUDA_API_H
#define WARMBOOT_CUDA_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef unsigned long long CUmemGenericAllocationHandle;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;

typedef struct {
    int type;
    int id;
} CUmemLocation;

typedef struct {
    int type;
    int requested_handle_types;
    CUmemLocation location;
    void *win32_handle_metadata;
    struct {
        unsigned char compression_type;
        unsigned char gpu_direct_rdma_capable;
        unsigned short usage;
        unsigned char reserved[4];
    } alloc_flags;
} CUmemAllocationProp;

typedef struct {
    CUmemLocation location;
    int flags;
} CUmemAccessDesc;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,

    CU_MEM_ALLOCATION_TYPE_PINNED = 1,
    CU_MEM_LOCATION_TYPE_DEVICE = 1,
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3,
    CU_MEM_ALLOC_GRANULARITY_MINIMUM = 0,
    CU_MEMHOSTALLOC_PORTABLE = 1,
    CU_STREAM_NON_BLOCKING = 1,
    CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102,
};

/* Every function that must be there: X(member, symbol, parameters). */
#define CUDA_FUNCTIONS(X)                                                                                              \
    X(ctx_get_current, "cuCtxGetCurrent", (CUcontext *))                                                               \
    X(ctx_set_current, "cuCtxSetCurrent", (CUcontext))                                                                 \
    X(ctx_get_device, "cuCtxGetDevice", (CUdevice *))                                                                  \
    X(ctx_synchronize, "cuCtxSynchronize", (void))                                                                     \
    X(device_attribute, "cuDeviceGetAttribute", (int *, int, CUdevice))                                                \
    X(get_error_name, "cuGetErrorName", (CUresult, const char **))                                                     \
    X(get_error_string, "cuGetErrorString", (CUresult, const char **))                                                 \
    X(mem_get_info, "cuMemGetInfo_v2", (size_t *, size_t *))                                                           \
    X(mem_alloc, "cuMemAlloc_v2", (CUdeviceptr *, size_t))                                                             \
    X(mem_free, "cuMemFree_v2", (CUdeviceptr))                                                                         \
    X(mem_address_reserve, "cuMemAddressReserve", (CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long))    \
    X(mem_address_free, "cuMemAddressFree", (CUdeviceptr, size_t))                                                     \
    X(mem_granularity, "cuMemGetAllocationGranularity", (size_t *, const CUmemAllocationProp *, int))                  \
    X(mem_create, "cuMemCreate",                                                                                       \
      (CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long))                       \
    X(mem_release, "cuMemRelease", (CUmemGenericAllocationHandle))                                                     \
    X(mem_map, "cuMemMap", (CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long))            \
    X(mem_unmap, "cuMemUnmap", (CUdeviceptr, size_t))                                                                  \
    X(mem_set_access, "cuMemSetAccess", (CUdeviceptr, size_t, const CUmemAccessDesc *, size_t))                        \
    X(mem_host_alloc, "cuMemHostAlloc", (void **, size_t, unsigned))                                                   \
    X(mem_free_host, "cuMemFreeHost", (void *))                                                                        \
    X(memcpy_dtoh, "cuMemcpyDtoH_v2", (void *, CUdeviceptr, size_t))                                                   \
    X(memcpy_dtoh_async, "cuMemcpyDtoHAsync_v2", (void *, CUdeviceptr, size_t, CUstream))                              \
    X(memcpy_htod_async, "cuMemcpyHtoDAsync_v2", (CUdeviceptr, const void *, size_t, CUstream))                        \
    X(memset_d8, "cuMemsetD8_v2", (CUdeviceptr, unsigned char, size_t))                                                \
    X(memset_d8_async, "cuMemsetD8Async", (CUdeviceptr, unsigned char, size_t, CUstream))                              \
    X(stream_create, "cuStreamCreate", (CUstream *, unsigned))                                                         \
    X(stream_synchronize, "cuStreamSynchronize", (CUstream))                                                           \
    X(stream_destroy, "cuStreamDestroy_v2", (CUstream))                                                                \
    X(module_load_data, "cuModuleLoadData", (CUmodule *, const void *))                                                \
    X(module_get_function, "cuModuleGetFunction", (CUfunction *, CUmodule, const char *))                              \
    X(module_unload, "cuModuleUnload", (CUmodule))                                                                     \
    X(launch_kernel, "cuLaunchKernel",                                                                                 \
      (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **))

/* The driver, as this process has it loaded. */
struct cuda_api {
#define MEMBER(name, symbol, parameters) CUresult(*name) parameters;
    CUDA_FUNCTIONS(MEMBER)
#undef MEMBER
};

extern struct cuda_api cuda;

/* Look the driver's functions up, once; NULL when all are there, or else why not, in words that stay valid. */
const char *cuda_load(void);

/* The driver's own symbol of this name, past our own; NULL when there is none. */
void *cuda_driver_symbol(const char *name);

/* "CUDA_ERROR_OUT_OF_MEMORY (2)" into `text`; returns `text`. */
char *cuda_error_text(CUresult code, char *text, size_t size);

#endif
