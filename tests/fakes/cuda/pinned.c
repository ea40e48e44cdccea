/* Pinned host memory: what asynchronous copies need to be asynchronous. */
#define _GNU_SOURCE
#include "stub.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

struct pinned {
    struct pinned *next;
    char *start;
    size_t bytes;
};

static struct pinned *all;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

bool is_pinned(const void *address, size_t bytes) {
    const char *start = address;
    bool found = false;
    pthread_mutex_lock(&mutex);
    for (struct pinned *each = all; each; each = each->next)
        found = found || (start >= each->start && start + bytes <= each->start + each->bytes);
    pthread_mutex_unlock(&mutex);
    return found;
}

PUBLIC CUresult cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    if (!bytes || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    if (fault_hits(FAULT_PINNED)) return CUDA_ERROR_OUT_OF_MEMORY;
    char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    struct pinned *made = malloc(sizeof *made);
    pthread_mutex_lock(&mutex);
    *made = (struct pinned){.next = all, .start = start, .bytes = bytes};
    all = made;
    pthread_mutex_unlock(&mutex);
    *memory = start;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuMemFreeHost(void *memory) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    pthread_mutex_lock(&mutex);
    struct pinned **place = &all;
    while (*place && (*place)->start != memory) place = &(*place)->next;
    struct pinned *found = *place;
    if (found) *place = found->next;
    pthread_mutex_unlock(&mutex);
    if (!found) return CUDA_ERROR_INVALID_VALUE;
    munmap(found->start, found->bytes);
    free(found);
    return CUDA_SUCCESS;
}

PUBLIC size_t fakeCudaPinned(void) {
    size_t bytes = 0;
    pthread_mutex_lock(&mutex);
    for (struct pinned *each = all; each; each = each->next) bytes += each->bytes;
    pthread_mutex_unlock(&mutex);
    return bytes;
}
