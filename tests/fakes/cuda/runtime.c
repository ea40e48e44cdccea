/* libcudart.so.13: finds the driver with dlopen, as the real one does, and makes its calls behind every preload's back. */
#define _GNU_SOURCE
#include "stub.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

typedef int cudaError_t;

static void *driver;
static pthread_once_t opened = PTHREAD_ONCE_INIT;
static _Thread_local int device;
static _Thread_local cudaError_t last_error;

static void open_driver(void) {
    driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver) abort();
}

static void *symbol(const char *name) {
    pthread_once(&opened, open_driver);
    void *found = dlsym(driver, name);
    if (!found) abort();
    return found;
}

#define DRIVER(name, ...) (((CUresult(*)(__VA_ARGS__))symbol(#name)))

static cudaError_t note(cudaError_t result) {
    if (result) last_error = result;
    return result;
}

/* The primary context of the thread's device, made current at the thread's first call. */
static cudaError_t ready(void) {
    CUcontext context = NULL;
    CUresult result = DRIVER(cuInit, unsigned)(0);
    if (!result) result = DRIVER(cuCtxGetCurrent, CUcontext *)(&context);
    if (!result && !context) {
        result = DRIVER(cuDevicePrimaryCtxRetain, CUcontext *, CUdevice)(&context, device);
        if (!result) result = DRIVER(cuCtxSetCurrent, CUcontext)(context);
    }
    return note(result);
}

PUBLIC cudaError_t cudaGetDeviceCount(int *count) {
    CUresult result = DRIVER(cuInit, unsigned)(0);
    return note(result ? result : DRIVER(cuDeviceGetCount, int *)(count));
}

PUBLIC cudaError_t cudaGetDevice(int *current) {
    cudaError_t result = ready();
    return result ? result : note(DRIVER(cuCtxGetDevice, CUdevice *)(current));
}

PUBLIC cudaError_t cudaSetDevice(int wanted) {
    int count = 0;
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result) return result;
    if (wanted < 0 || wanted >= count) return note(CUDA_ERROR_INVALID_DEVICE);
    CUcontext context;
    result = DRIVER(cuDevicePrimaryCtxRetain, CUcontext *, CUdevice)(&context, wanted);
    if (!result) result = DRIVER(cuCtxSetCurrent, CUcontext)(context);
    if (!result) device = wanted;
    return note(result);
}

PUBLIC cudaError_t cudaMalloc(void **memory, size_t bytes) {
    cudaError_t result = ready();
    if (result) return result;
    CUdeviceptr address = 0;
    *memory = NULL;
    if (!bytes) return 0;
    result = DRIVER(cuMemAlloc_v2, CUdeviceptr *, size_t)(&address, bytes);
    *memory = (void *)(uintptr_t)address;
    return note(result);
}

PUBLIC cudaError_t cudaFree(void *memory) {
    cudaError_t result = ready();
    if (result || !memory) return result;
    return note(DRIVER(cuMemFree_v2, CUdeviceptr)((uintptr_t)memory));
}

PUBLIC cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    cudaError_t result = ready();
    if (result) return result;
    if (kind == 1) return note(DRIVER(cuMemcpyHtoD_v2, CUdeviceptr, const void *, size_t)((uintptr_t)to, from, bytes));
    if (kind == 2) return note(DRIVER(cuMemcpyDtoH_v2, void *, CUdeviceptr, size_t)(to, (uintptr_t)from, bytes));
    return note(CUDA_ERROR_INVALID_VALUE);
}

PUBLIC cudaError_t cudaMemset(void *memory, int value, size_t bytes) {
    cudaError_t result = ready();
    if (result) return result;
    return note(DRIVER(cuMemsetD8_v2, CUdeviceptr, unsigned char, size_t)((uintptr_t)memory, (unsigned char)value, bytes));
}

PUBLIC cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    cudaError_t result = ready();
    return result ? result : note(DRIVER(cuMemGetInfo_v2, size_t *, size_t *)(free_bytes, total_bytes));
}

PUBLIC cudaError_t cudaDeviceSynchronize(void) {
    cudaError_t result = ready();
    return result ? result : note(DRIVER(cuCtxSynchronize, void)());
}

PUBLIC cudaError_t cudaGetLastError(void) {
    cudaError_t result = last_error;
    last_error = 0;
    return result;
}

PUBLIC cudaError_t cudaIpcGetMemHandle(void *handle, void *memory) {
    cudaError_t result = ready();
    return result ? result : note(DRIVER(cuIpcGetMemHandle, void *, CUdeviceptr)(handle, (uintptr_t)memory));
}

PUBLIC cudaError_t cudaDeviceCanAccessPeer(int *can, int from, int peer) {
    cudaError_t result = ready();
    return result ? result : note(DRIVER(cuDeviceCanAccessPeer, int *, int, int)(can, from, peer));
}

PUBLIC cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
    CUcontext context;
    cudaError_t result = ready();
    if (!result) result = note(DRIVER(cuDevicePrimaryCtxRetain, CUcontext *, int)(&context, peer));
    return result ? result : note(DRIVER(cuCtxEnablePeerAccess, CUcontext, unsigned)(context, flags));
}

PUBLIC cudaError_t cudaDeviceDisablePeerAccess(int peer) {
    CUcontext context;
    cudaError_t result = ready();
    if (!result) result = note(DRIVER(cuDevicePrimaryCtxRetain, CUcontext *, int)(&context, peer));
    return result ? result : note(DRIVER(cuCtxDisablePeerAccess, CUcontext)(context));
}
