/* libnvidia-ml.so.1: tells the GPU memory of this process, or refuses (FAKE_NVML=refuse), as in most containers. */
#define _GNU_SOURCE
#include "stub.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NVML_SUCCESS = 0, NVML_ERROR_INVALID_ARGUMENT = 2, NVML_ERROR_NOT_SUPPORTED = 3, NVML_ERROR_NOT_FOUND = 6, NVML_ERROR_INSUFFICIENT_SIZE = 7 };

typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId;
    unsigned computeInstanceId;
} nvmlProcessInfo_t; /* nvml.h of CUDA 12 and 13: the form of the _v3 call */

static bool refused(void) {
    const char *text = getenv("FAKE_NVML");
    return text && !strcmp(text, "refuse");
}

PUBLIC int nvmlInit_v2(void) { return NVML_SUCCESS; }
PUBLIC int nvmlShutdown(void) { return NVML_SUCCESS; }

PUBLIC int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= MAX_DEVICES) return NVML_ERROR_INVALID_ARGUMENT;
    *device = (void *)(uintptr_t)(index + 1);
    return NVML_SUCCESS;
}

PUBLIC int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **device) {
    unsigned index;
    if (sscanf(address, "0000:%x:00.0", &index) != 1 || index < 0x10) return NVML_ERROR_NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(index - 0x10, device);
}

PUBLIC int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, nvmlProcessInfo_t *processes) {
    if (refused()) return NVML_ERROR_NOT_SUPPORTED;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    size_t (*used)(int) = NULL;
    if (driver) {
        *(void **)&used = dlsym(driver, "fakeCudaUsed");
        dlclose(driver);
    }
    size_t bytes = used ? used((int)((uintptr_t)device - 1)) : 0;
    unsigned room = *count;
    *count = bytes ? 1 : 0;
    if (room < *count) return NVML_ERROR_INSUFFICIENT_SIZE;
    if (bytes) processes[0] = (nvmlProcessInfo_t){.pid = (unsigned)getpid(), .usedGpuMemory = bytes};
    return NVML_SUCCESS;
}
