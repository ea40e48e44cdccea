/* NVML, https://docs.nvidia.com/deploy/nvml-api/: `nvmlDeviceGetComputeRunningProcesses_v3` and its nvmlProcessInfo_t.
 *
 * CUDA and NVML number devices differently; the bus's address is the same for both.
 */
#define _GNU_SOURCE
#include "nvml.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "cuda_api.h"

enum { NVML_SUCCESS = 0, MAX_PROCESSES = 256 };
#define NOT_AVAILABLE UINT64_MAX

struct process {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
};

static bool look_up(void *library, const char *name, void *into) {
    void *found = dlsym(library, name);
    memcpy(into, &found, sizeof found);
    return found != NULL;
}

static bool ask(void *library, const char *bus, uint64_t *bytes) {
    static struct process processes[MAX_PROCESSES]; /* one thread asks */
    int (*init)(void), (*shut_down)(void), (*by_bus)(const char *, void **), (*list)(void *, unsigned *, struct process *);
    if (!look_up(library, "nvmlInit_v2", &init) || !look_up(library, "nvmlShutdown", &shut_down) ||
        !look_up(library, "nvmlDeviceGetHandleByPciBusId_v2", &by_bus) ||
        !look_up(library, "nvmlDeviceGetComputeRunningProcesses_v3", &list) || init() != NVML_SUCCESS)
        return false;
    void *handle = NULL;
    unsigned count = MAX_PROCESSES;
    bool told = false;
    if (by_bus(bus, &handle) == NVML_SUCCESS && list(handle, &count, processes) == NVML_SUCCESS)
        for (unsigned i = 0; i < count && !told; i++)
            if (processes[i].pid == (unsigned)getpid() && processes[i].used_bytes != NOT_AVAILABLE) {
                *bytes = processes[i].used_bytes;
                told = true;
            }
    shut_down();
    return told;
}

bool nvml_process_bytes(int device, uint64_t *bytes) {
    char bus[32];
    CUresult (*bus_of)(char *, int, CUdevice);
    void *found = cuda_driver_symbol("cuDeviceGetPCIBusId");
    memcpy(&bus_of, &found, sizeof found);
    void *library = found ? dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL) : NULL;
    bool told = library && bus_of(bus, sizeof bus, device) == CUDA_SUCCESS && ask(library, bus, bytes);
    if (library)
        dlclose(library);
    return told;
}
