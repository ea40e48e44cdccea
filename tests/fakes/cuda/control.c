/* Faults, devices, contexts, attributes and the names of errors. */
#define _GNU_SOURCE
#include "stub.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const FAULT_NAMES[FAULTS] = {
    "RESERVE", "CREATE", "MAP",    "ACCESS", "UNMAP", "RELEASE", "DTOH",      "HTOD",         "FLIP_OUT",
    "FLIP_IN", "LAUNCH", "PINNED", "STREAM", "PTX",   "NO_VMM",  "SYNC_HANG", "SYNC_CAPTURE", "DIRTY", "SLOW_COPY_US",
};
static struct {
    long at, seen;
    bool onwards;
} faults[FAULTS];
static pthread_mutex_t faults_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t faults_read = PTHREAD_ONCE_INIT;

static void set_fault(int which, const char *value) {
    char *end;
    faults[which].at = strtol(value, &end, 10);
    faults[which].seen = 0;
    faults[which].onwards = *end == '+';
}

static void read_faults(void) {
    for (int i = 0; i < FAULTS; i++) {
        char name[64] = "FAKE_CUDA_";
        strcat(name, FAULT_NAMES[i]);
        const char *value = getenv(name);
        if (value) set_fault(i, value);
    }
}

bool fault_hits(enum fault which) {
    pthread_once(&faults_read, read_faults);
    pthread_mutex_lock(&faults_mutex);
    long at = faults[which].at, seen = ++faults[which].seen;
    bool hit = at > 0 && (seen == at || (faults[which].onwards && seen > at));
    pthread_mutex_unlock(&faults_mutex);
    return hit;
}

long fault_value(enum fault which) {
    pthread_once(&faults_read, read_faults);
    pthread_mutex_lock(&faults_mutex);
    long at = faults[which].at;
    pthread_mutex_unlock(&faults_mutex);
    return at;
}

int fakeCudaFault(const char *name, const char *value) {
    pthread_once(&faults_read, read_faults);
    for (int i = 0; i < FAULTS; i++)
        if (!strcmp(name, FAULT_NAMES[i])) {
            pthread_mutex_lock(&faults_mutex);
            set_fault(i, value);
            pthread_mutex_unlock(&faults_mutex);
            return 0;
        }
    return -1;
}

static struct CUctx_st contexts[MAX_DEVICES];
static pthread_mutex_t contexts_mutex = PTHREAD_MUTEX_INITIALIZER;
static _Atomic pid_t initialised_by;
static _Thread_local CUcontext stack[16]; /* of contexts, the current one on top */
static _Thread_local int depth;
static _Thread_local int capture_mode;

int device_count(void) {
    const char *text = getenv("FAKE_CUDA_DEVICES");
    int count = text ? atoi(text) : 1;
    return count < 0 ? 0 : count > MAX_DEVICES ? MAX_DEVICES : count;
}

CUcontext primary_context(int device) { return &contexts[device]; }

PUBLIC CUresult cuInit(unsigned flags) {
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (initialised_by && initialised_by != getpid()) return CUDA_ERROR_NOT_INITIALIZED; /* forked: CUDA has no second life */
    if (!device_count()) return CUDA_ERROR_NO_DEVICE;
    initialised_by = getpid();
    return CUDA_SUCCESS;
}

CUresult need_init(void) { return initialised_by == getpid() ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED; }

CUresult need_context(CUcontext *context) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!depth || !stack[depth - 1]) return CUDA_ERROR_INVALID_CONTEXT;
    *context = stack[depth - 1];
    return (*context)->sticky;
}

PUBLIC CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuDeviceGetCount(int *count) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    *count = device_count();
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
    case 41: /* CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING */
        *value = 1;
        return CUDA_SUCCESS;
    case 102: /* CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED */
        *value = !fault_hits(FAULT_NO_VMM);
        return CUDA_SUCCESS;
    default:
        *value = 0;
        return CUDA_SUCCESS;
    }
}

PUBLIC CUresult cuDeviceGetPCIBusId(char *text, int room, CUdevice device) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(text, (size_t)room, "0000:%02x:00.0", 0x10 + device);
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    int count = device_count();
    if (device < 0 || device >= count || peer < 0 || peer >= count) return CUDA_ERROR_INVALID_DEVICE;
    *can = device != peer && !getenv("FAKE_CUDA_NO_PEERS");
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    CUcontext mine = &contexts[device];
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&contexts_mutex);
    if (!mine->retained) {
        mine->device = device;
        if (!mine->null_stream) {
            result = stream_open(mine, true, &mine->null_stream);
            context_comes(device);
        }
    }
    if (!result) mine->retained++;
    pthread_mutex_unlock(&contexts_mutex);
    *context = mine;
    return result;
}

PUBLIC CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&contexts_mutex);
    bool held = contexts[device].retained > 0;
    if (held) contexts[device].retained--;
    pthread_mutex_unlock(&contexts_mutex);
    return held ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

PUBLIC CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&contexts_mutex);
    *flags = 0;
    *active = contexts[device].retained > 0;
    pthread_mutex_unlock(&contexts_mutex);
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuCtxGetCurrent(CUcontext *context) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    *context = depth ? stack[depth - 1] : NULL;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuCtxSetCurrent(CUcontext context) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!depth) depth = 1;
    stack[depth - 1] = context;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuCtxPushCurrent_v2(CUcontext context) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!context || depth == 16) return CUDA_ERROR_INVALID_CONTEXT;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
    CUcontext top = stack[--depth];
    if (context) *context = top;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuCtxGetDevice(CUdevice *device) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (!result) *device = context->device;
    return result;
}

PUBLIC CUresult cuCtxSynchronize(void) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    while (fault_hits(FAULT_SYNC_HANG)) usleep(2000);
    if (fault_hits(FAULT_SYNC_CAPTURE)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return run_context(context, false);
}

PUBLIC CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (!peer || peer == context) return CUDA_ERROR_INVALID_CONTEXT;
    int can = 0;
    cuDeviceCanAccessPeer(&can, context->device, peer->device);
    if (!can) return 217; /* CUDA_ERROR_PEER_ACCESS_UNSUPPORTED */
    unsigned bit = 1u << peer->device;
    return __atomic_fetch_or(&context->peers, bit, __ATOMIC_SEQ_CST) & bit ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : 0;
}

PUBLIC CUresult cuCtxDisablePeerAccess(CUcontext peer) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    if (!peer || peer == context) return CUDA_ERROR_INVALID_CONTEXT;
    unsigned bit = 1u << peer->device;
    return __atomic_fetch_and(&context->peers, ~bit, __ATOMIC_SEQ_CST) & bit ? 0 : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}

PUBLIC CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
    if (*mode < 0 || *mode > 2) return CUDA_ERROR_INVALID_VALUE;
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

static const struct {
    CUresult code;
    const char *name, *words;
} ERRORS[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {CUDA_ERROR_INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
};

static CUresult look_up(CUresult code, const char **text, bool name) {
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].code == code) {
            *text = name ? ERRORS[i].name : ERRORS[i].words;
            return CUDA_SUCCESS;
        }
    *text = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

PUBLIC CUresult cuGetErrorName(CUresult code, const char **text) { return look_up(code, text, true); }
PUBLIC CUresult cuGetErrorString(CUresult code, const char **text) { return look_up(code, text, false); }
