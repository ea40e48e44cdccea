/* Work on streams: copies, memsets and the one kernel. Nothing is done before somebody synchronises. */
#define _GNU_SOURCE
#include "stub.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum what { OUT, IN, SET, MARK };
struct operation {
    struct operation *next;
    enum what what;
    CUdeviceptr device;
    char *host;
    size_t bytes;
    unsigned char value;
    struct { /* of warmboot_nonzero */
        unsigned long long base, chunk, total, flags;
        unsigned chunks;
    } kernel;
};
struct CUstream_st {
    struct CUstream_st *next;
    CUcontext context;
    bool blocking; /* waits for, and is waited for by, the context's default stream */
    pthread_mutex_t mutex;
    struct operation *first, **last;
};
struct CUmod_st {
    struct CUmod_st *next;
    CUcontext context;
};

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct CUstream_st *streams;
static struct CUmod_st *modules;

CUresult stream_open(CUcontext context, bool blocking, CUstream *stream) {
    struct CUstream_st *made = calloc(1, sizeof *made);
    if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
    made->context = context;
    made->blocking = blocking;
    made->last = &made->first;
    pthread_mutex_init(&made->mutex, NULL);
    pthread_mutex_lock(&list_mutex);
    made->next = streams;
    streams = made;
    pthread_mutex_unlock(&list_mutex);
    *stream = made;
    return CUDA_SUCCESS;
}

static char *at(CUdeviceptr address) { return (char *)(uintptr_t)address; }

static CUresult mark(int device, const struct operation *op) {
    for (unsigned i = 0; i < op->kernel.chunks; i++) {
        unsigned long long offset = i * op->kernel.chunk;
        if (offset >= op->kernel.total) continue; /* a block beyond the end has nothing to look at */
        size_t left = op->kernel.total - offset, bytes = left < op->kernel.chunk ? left : op->kernel.chunk;
        bool reachable = device_can_touch(device, op->kernel.base + offset, bytes) &&
                         device_can_touch(device, op->kernel.flags + i, 1);
        if (!reachable) return CUDA_ERROR_ILLEGAL_ADDRESS;
        const char *data = at(op->kernel.base + offset);
        if (data[0] || memcmp(data, data + 1, bytes - 1)) *at(op->kernel.flags + i) = 1;
    }
    return CUDA_SUCCESS;
}

static CUresult perform(CUcontext context, const struct operation *op) {
    if (op->what == OUT || op->what == IN) {
        long slow_us = fault_value(FAULT_SLOW_COPY_US);
        if (slow_us) usleep((useconds_t)slow_us);
        if (fault_hits(op->what == OUT ? FAULT_DTOH : FAULT_HTOD)) return CUDA_ERROR_ECC_UNCORRECTABLE;
    }
    CUresult result = CUDA_SUCCESS;
    memory_read_lock();
    if (op->what == MARK) {
        result = mark(context->device, op);
    } else if (!device_can_touch(context->device, op->device, op->bytes)) {
        result = CUDA_ERROR_ILLEGAL_ADDRESS;
    } else if (op->what == SET) {
        memset(at(op->device), op->value, op->bytes);
    } else if (op->what == OUT) {
        memcpy(op->host, at(op->device), op->bytes);
        if (fault_hits(FAULT_FLIP_OUT)) op->host[op->bytes / 2] ^= 1;
    } else {
        memcpy(at(op->device), op->host, op->bytes);
        if (fault_hits(FAULT_FLIP_IN)) at(op->device)[op->bytes / 2] ^= 1;
    }
    memory_unlock();
    return result;
}

static CUresult run_stream(CUstream stream) {
    CUcontext context = stream->context;
    pthread_mutex_lock(&stream->mutex);
    while (stream->first) {
        struct operation *op = stream->first;
        stream->first = op->next;
        if (!stream->first) stream->last = &stream->first;
        if (!context->sticky) {
            CUresult result = perform(context, op);
            if (result) context->sticky = result;
        }
        free(op);
    }
    pthread_mutex_unlock(&stream->mutex);
    return context->sticky;
}

CUresult run_context(CUcontext context, bool only_blocking) {
    pthread_mutex_lock(&list_mutex);
    size_t count = 0;
    for (CUstream each = streams; each; each = each->next) count++;
    CUstream *mine = calloc(count + 1, sizeof *mine);
    count = 0;
    for (CUstream each = streams; each; each = each->next)
        if (each->context == context && (each->blocking || !only_blocking)) mine[count++] = each;
    /* Held to the end: a stream that another thread destroys meanwhile would be gone below our hands. */
    for (size_t i = 0; i < count; i++) run_stream(mine[i]);
    pthread_mutex_unlock(&list_mutex);
    free(mine);
    return context->sticky;
}

/* The stream that a call means; NULL where there is none such. The handles 1 and 2 are names of the default stream. */
static CUstream resolve(CUcontext context, CUstream stream) {
    if ((uintptr_t)stream <= 2) return context->null_stream;
    pthread_mutex_lock(&list_mutex);
    CUstream each = streams;
    while (each && each != stream) each = each->next;
    pthread_mutex_unlock(&list_mutex);
    return each;
}

static CUresult enqueue(CUcontext context, CUstream stream, struct operation wanted) {
    CUstream target = resolve(context, stream);
    if (!target || target->context != context) return CUDA_ERROR_INVALID_HANDLE;
    if (wanted.what != MARK) {
        if (!wanted.bytes) return CUDA_SUCCESS;
        memory_read_lock();
        bool reachable = device_can_touch(context->device, wanted.device, wanted.bytes);
        memory_unlock();
        if (!reachable) return CUDA_ERROR_INVALID_VALUE;
    }
    struct operation *op = malloc(sizeof *op);
    if (!op) return CUDA_ERROR_OUT_OF_MEMORY;
    *op = wanted;
    op->next = NULL;
    pthread_mutex_lock(&target->mutex);
    *target->last = op;
    target->last = &op->next;
    pthread_mutex_unlock(&target->mutex);
    bool waits = (wanted.what == OUT || wanted.what == IN) && !is_pinned(wanted.host, wanted.bytes);
    return waits ? run_stream(target) : CUDA_SUCCESS; /* pageable memory is copied before the call returns */
}

static CUresult copy_now(enum what what, void *host, CUdeviceptr device, size_t bytes) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    result = run_context(context, true);
    if (result) return result;
    memory_read_lock();
    if (bytes && !device_can_touch(context->device, device, bytes)) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else if (bytes && what == OUT) {
        memcpy(host, at(device), bytes);
    } else if (bytes) {
        memcpy(at(device), host, bytes);
    }
    memory_unlock();
    return result;
}

PUBLIC CUresult cuMemcpyDtoH_v2(void *host, CUdeviceptr device, size_t bytes) { return copy_now(OUT, host, device, bytes); }
PUBLIC CUresult cuMemcpyHtoD_v2(CUdeviceptr device, const void *host, size_t bytes) {
    return copy_now(IN, (void *)(uintptr_t)host, device, bytes);
}

static CUresult later(CUstream stream, struct operation wanted) {
    CUcontext context;
    CUresult result = need_context(&context);
    return result ? result : enqueue(context, stream, wanted);
}

PUBLIC CUresult cuMemcpyDtoHAsync_v2(void *host, CUdeviceptr device, size_t bytes, CUstream stream) {
    return later(stream, (struct operation){.what = OUT, .host = host, .device = device, .bytes = bytes});
}
PUBLIC CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr device, const void *host, size_t bytes, CUstream stream) {
    char *from = (char *)(uintptr_t)host;
    return later(stream, (struct operation){.what = IN, .host = from, .device = device, .bytes = bytes});
}
PUBLIC CUresult cuMemsetD8Async(CUdeviceptr device, unsigned char value, size_t bytes, CUstream stream) {
    return later(stream, (struct operation){.what = SET, .device = device, .bytes = bytes, .value = value});
}
/* As the real one on device memory: it returns before the memory is set, in the order of the default stream. */
PUBLIC CUresult cuMemsetD8_v2(CUdeviceptr device, unsigned char value, size_t bytes) {
    return cuMemsetD8Async(device, value, bytes, NULL);
}

PUBLIC CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    if (fault_hits(FAULT_STREAM)) return CUDA_ERROR_OUT_OF_MEMORY;
    return stream_open(context, !flags, stream); /* CU_STREAM_NON_BLOCKING is 1 */
}

PUBLIC CUresult cuStreamSynchronize(CUstream stream) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    CUstream target = resolve(context, stream);
    if (!target) return CUDA_ERROR_INVALID_HANDLE;
    return target == context->null_stream ? run_context(context, true) : run_stream(target);
}

PUBLIC CUresult cuStreamDestroy_v2(CUstream stream) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result && (result == CUDA_ERROR_INVALID_CONTEXT || result == CUDA_ERROR_NOT_INITIALIZED)) return result;
    pthread_mutex_lock(&list_mutex);
    struct CUstream_st **place = &streams;
    while (*place && *place != stream) place = &(*place)->next;
    bool found = *place && stream != stream->context->null_stream;
    if (found) *place = stream->next;
    pthread_mutex_unlock(&list_mutex);
    if (!found) return CUDA_ERROR_INVALID_HANDLE;
    result = run_stream(stream);
    pthread_mutex_destroy(&stream->mutex);
    free(stream);
    return result;
}

PUBLIC size_t fakeCudaStreams(void) {
    size_t count = 0;
    pthread_mutex_lock(&list_mutex);
    for (CUstream each = streams; each; each = each->next) count += each != each->context->null_stream;
    pthread_mutex_unlock(&list_mutex);
    return count;
}

PUBLIC CUresult cuModuleLoadData(struct CUmod_st **module, const void *image) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    const char *text = image;
    bool readable = strstr(text, ".version") && strstr(text, ".target") && strstr(text, ".entry warmboot_nonzero");
    if (!readable || fault_hits(FAULT_PTX)) return CUDA_ERROR_INVALID_PTX;
    struct CUmod_st *made = calloc(1, sizeof *made);
    made->context = context;
    pthread_mutex_lock(&list_mutex);
    made->next = modules;
    modules = made;
    pthread_mutex_unlock(&list_mutex);
    *module = made;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuModuleLoadDataEx(struct CUmod_st **module, const void *image, unsigned count, int *keys, void **values) {
    (void)count, (void)keys, (void)values;
    return cuModuleLoadData(module, image);
}

static bool is_module(const struct CUmod_st *module) {
    pthread_mutex_lock(&list_mutex);
    struct CUmod_st *each = modules;
    while (each && each != module) each = each->next;
    pthread_mutex_unlock(&list_mutex);
    return each != NULL;
}

PUBLIC CUresult cuModuleGetFunction(void **function, struct CUmod_st *module, const char *name) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    if (!is_module(module)) return CUDA_ERROR_INVALID_HANDLE;
    if (strcmp(name, "warmboot_nonzero") != 0) return CUDA_ERROR_NOT_FOUND;
    *function = module;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuModuleUnload(struct CUmod_st *module) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    pthread_mutex_lock(&list_mutex);
    struct CUmod_st **place = &modules;
    while (*place && *place != module) place = &(*place)->next;
    bool found = *place != NULL;
    if (found) *place = module->next;
    pthread_mutex_unlock(&list_mutex);
    if (!found) return CUDA_ERROR_INVALID_HANDLE;
    free(module);
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters,
                               void **extra) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    if (!is_module(function) || ((struct CUmod_st *)function)->context != context) return CUDA_ERROR_INVALID_HANDLE;
    unsigned threads = block_x * block_y * block_z;
    if (!grid_x || grid_y != 1 || grid_z != 1 || !threads || threads > 1024 || shared > 49152 || extra || !parameters)
        return CUDA_ERROR_INVALID_VALUE;
    if (fault_hits(FAULT_LAUNCH)) return 701; /* CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES */
    struct operation op = {.what = MARK};
    op.kernel.base = *(unsigned long long *)parameters[0];
    op.kernel.chunk = *(unsigned long long *)parameters[1];
    op.kernel.total = *(unsigned long long *)parameters[2];
    op.kernel.flags = *(unsigned long long *)parameters[3];
    op.kernel.chunks = grid_x;
    if (!op.kernel.chunk || op.kernel.chunk % 16 || op.kernel.base % 16) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(context, stream, op);
}
