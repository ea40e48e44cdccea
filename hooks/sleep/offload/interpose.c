/* The functions that stand in front of CUDA's own: those that allocate and free, and those that cannot go together with
 * memory that moves away.
 *
 * A server links the runtime (`cudaMalloc`) or the driver (`cuMemAlloc`) dynamically, or it is not seen here. Without
 * the folder of the control socket in the environment all of them pass everything through.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_api.h"
#include "offload.h"
#include "regions.h"
#include "server.h"

#define PUBLIC __attribute__((visibility("default")))
#define FOLDER "WARMBOOT_GPU_MEMORY"
#define LEAST "WARMBOOT_GPU_MEMORY_MIN"

enum { DEFAULT_LEAST_BYTES = 8 << 20 };

/* Of the runtime, https://docs.nvidia.com/cuda/cuda-runtime-api/ (cudaError_t); the rest are the driver's numbers. */
typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNotSupported = 801, cudaErrorSymbolNotFound = 500 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *folder; /* NULL: nothing is caught */
static size_t least_bytes = DEFAULT_LEAST_BYTES;
static atomic_bool started;  /* this process has memory of ours, and a control socket */
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int inside; /* CUDA's own functions call each other */

/* In a fork: CUDA does not work in the child of a process that used it, and the socket is the parent's. A child of one
 * that did not begins anew. */
static void after_fork(void) {
    server_forget(); /* it may be there before `started` says so */
    if (atomic_load(&started))
        folder = NULL;
    else {
        pthread_mutex_init(&starting, NULL);
        pthread_mutex_init(&regions.lock, NULL);
    }
}

static void read_environment(void) {
    const char *named = getenv(FOLDER), *least = getenv(LEAST);
    char *end = NULL;
    unsigned long long bytes = least && *least ? strtoull(least, &end, 10) : DEFAULT_LEAST_BYTES;
    if (end == NULL || *end == '\0')
        least_bytes = bytes;
    if (named && *named) {
        folder = strdup(named); /* the environment may change */
        pthread_atfork(NULL, NULL, after_fork);
    }
}

static bool catches(size_t bytes) {
    pthread_once(&once, read_environment);
    return folder && bytes && bytes >= least_bytes && !inside && !off_reason();
}

static bool caught_any(void) {
    pthread_once(&once, read_environment);
    return folder && !inside && atomic_load(&started);
}

static void say(const char *detail) { dprintf(STDERR_FILENO, "warmboot-gpu: %s\n", detail); }

/* Catch nothing from now on; of several threads that find a reason the first one says it. */
static void give_up(const char *reason) {
    if (turn_off(reason))
        say(reason);
}

/* The n-th runtime that is loaded. */
struct search {
    int left;
    char path[4096];
};

static int is_runtime(struct dl_phdr_info *info, size_t size, void *argument) {
    (void)size;
    struct search *search = argument;
    const char *base = strrchr(info->dlpi_name, '/');
    if (strncmp(base ? base + 1 : info->dlpi_name, "libcudart.so", 12) != 0 || search->left--)
        return 0;
    snprintf(search->path, sizeof search->path, "%s", info->dlpi_name);
    return 1;
}

/* A library that a process opened by name keeps its symbols to itself, where RTLD_NEXT does not look: Python opens
 * torch's so. */
static void *in_loaded_runtimes(const char *name) {
    struct search search;
    for (int index = 0; search.left = index, dl_iterate_phdr(is_runtime, &search); index++) {
        void *handle = dlopen(search.path, RTLD_LAZY | RTLD_NOLOAD); /* not within the search: its lock is another */
        void *found = handle ? dlsym(handle, name) : NULL;
        if (handle)
            dlclose(handle); /* whoever has it open keeps it */
        if (found)
            return found;
    }
    return NULL;
}

/* The runtime's own function; NULL: there is none. `cache` keeps it. */
static void *runtime(const char *name, _Atomic(void *) *cache) {
    void *found = atomic_load(cache);
    if (found == NULL)
        found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        found = in_loaded_runtimes(name);
    atomic_store(cache, found);
    return found;
}

/* The driver's own function. */
static void *driver(const char *name, _Atomic(void *) *cache) {
    void *found = atomic_load(cache);
    if (found == NULL)
        atomic_store(cache, found = cuda_driver_symbol(name));
    return found;
}

#define REAL(where, type, name)                                                                                        \
    static _Atomic(void *) cache_##name;                                                                               \
    __typeof__(type) name##_own;                                                                                       \
    void *found_##name = where(#name, &cache_##name);                                                                  \
    memcpy(&name##_own, &found_##name, sizeof found_##name)

/* Call CUDA's own function, so that nothing that it calls is caught in turn. */
#define CALL(result, call) (inside++, (result) = (call), inside--)

/* Before the first allocation that is caught: the control socket. False: nothing is caught in this process. */
static bool begin(void) {
    if (atomic_load(&started))
        return true;
    pthread_mutex_lock(&starting);
    if (!atomic_load(&started) && !off_reason()) {
        const char *missing = cuda_load();
        if (missing)
            give_up(missing);
        else if (!server_start(folder)) {
            char reason[256];
            snprintf(reason, sizeof reason, "there can be no control socket in %.150s: %s", folder, strerror(errno));
            give_up(reason);
        } else
            atomic_store(&started, true);
    }
    pthread_mutex_unlock(&starting);
    return atomic_load(&started);
}

/* CUDA_SUCCESS, or out of memory, or NOT_SUPPORTED: let CUDA do it. */
static CUresult catch_allocation(CUdeviceptr *at, size_t bytes) {
    if (!begin())
        return CUDA_ERROR_NOT_SUPPORTED;
    inside++;
    CUresult result = regions_allocate(at, bytes);
    inside--;
    if (result == CUDA_ERROR_INVALID_CONTEXT) /* no context is current: CUDA's own function says so to the caller */
        return CUDA_ERROR_NOT_SUPPORTED;
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY) {
        char reason[160], text[96];
        snprintf(reason, sizeof reason, "GPU memory cannot be caught: %s", cuda_error_text(result, text, sizeof text));
        give_up(reason);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return result;
}

static bool catch_free(CUdeviceptr at, CUresult *result) {
    if (!caught_any())
        return false;
    inside++;
    bool ours = regions_free(at, result);
    inside--;
    return ours;
}

static bool refuse_ipc(CUdeviceptr at) {
    if (!caught_any() || !regions_contain(at))
        return false;
    count_ipc_refused();
    say("memory that can be put aside cannot be shared between processes by CUDA IPC. Start the engine with "
        "--disable-custom-all-reduce, or without this library");
    return true;
}

PUBLIC cudaError_t cudaMalloc(void **out, size_t bytes) {
    REAL(runtime, cudaError_t(*)(void **, size_t), cudaMalloc);
    REAL(runtime, cudaError_t(*)(void *), cudaFree);
    cudaError_t result;
    if (!cudaMalloc_own)
        return cudaErrorSymbolNotFound;
    if (out && cudaFree_own && catches(bytes)) {
        CALL(result, cudaFree_own(NULL)); /* makes the device's context current, as cudaMalloc does */
        if (result != cudaSuccess)
            return result;
        CUdeviceptr at = 0;
        CUresult caught = catch_allocation(&at, bytes);
        if (caught == CUDA_SUCCESS)
            *out = (void *)(uintptr_t)at;
        if (caught != CUDA_ERROR_NOT_SUPPORTED)
            return caught == CUDA_SUCCESS ? cudaSuccess : cudaErrorMemoryAllocation;
    }
    CALL(result, cudaMalloc_own(out, bytes));
    return result;
}

PUBLIC cudaError_t cudaFree(void *at) {
    REAL(runtime, cudaError_t(*)(void *), cudaFree);
    CUresult result;
    if (at && catch_free((CUdeviceptr)(uintptr_t)at, &result))
        return result;
    if (!cudaFree_own)
        return cudaErrorSymbolNotFound;
    CALL(result, cudaFree_own(at));
    return result;
}

/* It may be given what cudaMalloc made. Ours waits for the whole device: more than it must, and never less. */
PUBLIC cudaError_t cudaFreeAsync(void *at, void *stream) {
    REAL(runtime, cudaError_t(*)(void *, void *), cudaFreeAsync);
    CUresult result;
    if (at && catch_free((CUdeviceptr)(uintptr_t)at, &result))
        return result;
    if (!cudaFreeAsync_own)
        return cudaErrorSymbolNotFound;
    CALL(result, cudaFreeAsync_own(at, stream));
    return result;
}

PUBLIC cudaError_t cudaIpcGetMemHandle(void *handle, void *at) {
    REAL(runtime, cudaError_t(*)(void *, void *), cudaIpcGetMemHandle);
    cudaError_t result;
    if (refuse_ipc((CUdeviceptr)(uintptr_t)at))
        return cudaErrorNotSupported;
    if (!cudaIpcGetMemHandle_own)
        return cudaErrorSymbolNotFound;
    CALL(result, cudaIpcGetMemHandle_own(handle, at));
    return result;
}

/* The current device may reach `peer`'s memory from now on, or no more: cudaMalloc's is reached by this alone, ours must
 * be told for each mapping. */
static void note_peer(int peer, bool allowed) {
    CUdevice here = 0;
    pthread_once(&once, read_environment);
    if (!folder || cuda_load() || cuda.ctx_get_device(&here) != CUDA_SUCCESS)
        return;
    if (regions_set_access(here, peer, allowed) != CUDA_SUCCESS)
        say("one GPU's access to the memory of another could not be set");
}

PUBLIC cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
    REAL(runtime, cudaError_t(*)(int, unsigned), cudaDeviceEnablePeerAccess);
    cudaError_t result;
    if (!cudaDeviceEnablePeerAccess_own)
        return cudaErrorSymbolNotFound;
    CALL(result, cudaDeviceEnablePeerAccess_own(peer, flags));
    if (result == cudaSuccess || result == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)
        note_peer(peer, true);
    return result;
}

PUBLIC cudaError_t cudaDeviceDisablePeerAccess(int peer) {
    REAL(runtime, cudaError_t(*)(int), cudaDeviceDisablePeerAccess);
    cudaError_t result;
    if (!cudaDeviceDisablePeerAccess_own)
        return cudaErrorSymbolNotFound;
    CALL(result, cudaDeviceDisablePeerAccess_own(peer));
    if (result == cudaSuccess)
        note_peer(peer, false);
    return result;
}

PUBLIC CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
    REAL(driver, CUresult(*)(CUdeviceptr *, size_t), cuMemAlloc_v2);
    CUresult result;
    if (!cuMemAlloc_v2_own)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (out && catches(bytes)) {
        result = catch_allocation(out, bytes);
        if (result != CUDA_ERROR_NOT_SUPPORTED)
            return result;
    }
    CALL(result, cuMemAlloc_v2_own(out, bytes));
    return result;
}

PUBLIC CUresult cuMemFree_v2(CUdeviceptr at) {
    REAL(driver, CUresult(*)(CUdeviceptr), cuMemFree_v2);
    CUresult result;
    if (at && catch_free(at, &result))
        return result;
    if (!cuMemFree_v2_own)
        return CUDA_ERROR_NOT_INITIALIZED;
    CALL(result, cuMemFree_v2_own(at));
    return result;
}

PUBLIC CUresult cuMemFreeAsync(CUdeviceptr at, CUstream stream) {
    REAL(driver, CUresult(*)(CUdeviceptr, CUstream), cuMemFreeAsync);
    CUresult result;
    if (at && catch_free(at, &result))
        return result;
    if (!cuMemFreeAsync_own)
        return CUDA_ERROR_NOT_INITIALIZED;
    CALL(result, cuMemFreeAsync_own(at, stream));
    return result;
}

PUBLIC CUresult cuIpcGetMemHandle(void *handle, CUdeviceptr at) {
    REAL(driver, CUresult(*)(void *, CUdeviceptr), cuIpcGetMemHandle);
    CUresult result;
    if (refuse_ipc(at))
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!cuIpcGetMemHandle_own)
        return CUDA_ERROR_NOT_INITIALIZED;
    CALL(result, cuIpcGetMemHandle_own(handle, at));
    return result;
}
