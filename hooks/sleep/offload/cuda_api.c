/* Finds the CUDA driver that the process has loaded. */
#define _GNU_SOURCE
#include "cuda_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct cuda_api cuda;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char missing[128];

/* The one that is loaded already, or else a new one: the runtime opens it by this name too. */
static void *driver(void) {
    static void *handle; /* the same value whoever writes it */
    void *found = __atomic_load_n(&handle, __ATOMIC_ACQUIRE);
    if (found == NULL) {
        found = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        __atomic_store_n(&handle, found, __ATOMIC_RELEASE);
    }
    return found;
}

void *cuda_driver_symbol(const char *name) {
    void *handle = driver();
    return handle ? dlsym(handle, name) : NULL;
}

static void load(void) {
    if (driver() == NULL) {
        snprintf(missing, sizeof missing, "libcuda.so.1 cannot be loaded");
        return;
    }
    void *found;
#define LOOK_UP(name, symbol, parameters)                                                                              \
    found = cuda_driver_symbol(symbol);                                                                                \
    if (found == NULL && !missing[0])                                                                                  \
        snprintf(missing, sizeof missing, "the CUDA driver has no %s", symbol);                                        \
    memcpy(&cuda.name, &found, sizeof found);
    CUDA_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
}

const char *cuda_load(void) {
    pthread_once(&once, load);
    return missing[0] ? missing : NULL;
}

char *cuda_error_text(CUresult code, char *text, size_t size) {
    const char *name = NULL;
    if (cuda.get_error_name == NULL || cuda.get_error_name(code, &name) != CUDA_SUCCESS || name == NULL)
        name = "CUDA error";
    snprintf(text, size, "%s (%d)", name, code);
    return text;
}
