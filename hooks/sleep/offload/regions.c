/* The table of the GPU memory that we caught, and the driver's calls that map and unmap it. */
#include "regions.h"

#include <stdlib.h>
#include <string.h>

struct regions regions = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Freed while a stream was being captured, when nobody may wait for the GPU: they go at the next opportunity. */
static struct region **waiting;
static size_t waiting_count, waiting_room;

static CUmemAllocationProp properties(int device) {
    CUmemAllocationProp prop;
    memset(&prop, 0, sizeof prop);
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    return prop;
}

/* The index of the first region that begins after `at`. */
static size_t after(CUdeviceptr at) {
    size_t low = 0, high = regions.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (regions.sorted[middle]->at <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Room for one pointer more. */
static bool grow(struct region ***list, size_t count, size_t *room) {
    if (count < *room)
        return true;
    size_t wanted = *room ? 2 * *room : 64;
    struct region **more = realloc(*list, wanted * sizeof *more);
    if (more == NULL)
        return false;
    *list = more;
    *room = wanted;
    return true;
}

static CUresult set_access(const struct region *region) {
    CUmemAccessDesc descriptions[MAX_DEVICES];
    size_t count = 0;
    uint64_t who = regions.devices[region->device].accessors | 1ull << region->device;
    for (int device = 0; device < MAX_DEVICES; device++)
        if (who >> device & 1)
            descriptions[count++] = (CUmemAccessDesc){
                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
                .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            };
    return cuda.mem_set_access(region->at, region->bytes, descriptions, count);
}

CUresult region_map(struct region *region, const char **call) {
    CUmemAllocationProp prop = properties(region->device);
    *call = "cuMemCreate";
    CUresult result = cuda.mem_create(&region->handle, region->bytes, &prop, 0);
    if (result != CUDA_SUCCESS)
        return result;
    *call = "cuMemMap";
    result = cuda.mem_map(region->at, region->bytes, 0, region->handle, 0);
    if (result != CUDA_SUCCESS) {
        cuda.mem_release(region->handle);
        return result;
    }
    *call = "cuMemSetAccess";
    result = set_access(region);
    if (result != CUDA_SUCCESS) {
        cuda.mem_unmap(region->at, region->bytes);
        cuda.mem_release(region->handle);
        return result;
    }
    region->mapped = true;
    return CUDA_SUCCESS;
}

CUresult region_unmap(struct region *region, const char **call) {
    *call = "cuMemUnmap";
    CUresult result = cuda.mem_unmap(region->at, region->bytes);
    if (result != CUDA_SUCCESS)
        return result;
    region->mapped = false;
    *call = "cuMemRelease";
    return cuda.mem_release(region->handle);
}

static void discard(struct region *region) {
    const char *call;
    if (region->mapped)
        region_unmap(region, &call);
    cuda.mem_address_free(region->at, region->bytes);
    free(region->chunks);
    free(region);
}

/* Discard what could not be freed at its time, of one device or (-1) of all of them: they are idle. The lock is held. */
static void discard_waiting(int device) {
    size_t kept = 0;
    for (size_t i = 0; i < waiting_count; i++)
        if (device < 0 || waiting[i]->device == device)
            discard(waiting[i]);
        else
            waiting[kept++] = waiting[i];
    waiting_count = kept;
}

void regions_discard_freed(void) { discard_waiting(-1); }

static CUresult meet(int device, CUcontext context) {
    struct device *known = &regions.devices[device];
    if (known->known)
        return CUDA_SUCCESS;
    int supported = 0;
    CUresult result = cuda.device_attribute(&supported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device);
    if (result != CUDA_SUCCESS)
        return result;
    if (!supported)
        return CUDA_ERROR_NOT_SUPPORTED;
    CUmemAllocationProp prop = properties(device);
    result = cuda.mem_granularity(&known->granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (result != CUDA_SUCCESS)
        return result;
    size_t unused = 0, total = 0;
    if (cuda.mem_get_info(&unused, &total) == CUDA_SUCCESS)
        known->before_bytes = total - unused;
    known->context = context;
    known->known = true;
    return CUDA_SUCCESS;
}

static CUresult allocate(CUdeviceptr *at, size_t bytes) {
    CUcontext context = NULL;
    CUdevice device = 0;
    if (cuda.ctx_get_current(&context) != CUDA_SUCCESS || context == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    CUresult result = cuda.ctx_get_device(&device);
    if (result == CUDA_SUCCESS && (device < 0 || device >= MAX_DEVICES))
        result = CUDA_ERROR_NOT_SUPPORTED;
    if (result == CUDA_SUCCESS)
        result = meet(device, context);
    if (result != CUDA_SUCCESS)
        return result;
    if (waiting_count && cuda.ctx_synchronize() == CUDA_SUCCESS)
        discard_waiting(device);
    size_t unit = regions.devices[device].granularity;
    if (bytes > SIZE_MAX - unit)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct region *region = calloc(1, sizeof *region);
    if (region == NULL || !grow(&regions.sorted, regions.count, &regions.room)) {
        free(region);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    region->bytes = (bytes + unit - 1) / unit * unit;
    region->device = device;
    region->context = context;
    const char *call;
    result = cuda.mem_address_reserve(&region->at, region->bytes, 0, 0, 0);
    if (result == CUDA_SUCCESS && (result = region_map(region, &call)) != CUDA_SUCCESS)
        cuda.mem_address_free(region->at, region->bytes);
    if (result != CUDA_SUCCESS) {
        free(region);
        return result;
    }
    size_t index = after(region->at);
    memmove(&regions.sorted[index + 1], &regions.sorted[index], (regions.count - index) * sizeof *regions.sorted);
    regions.sorted[index] = region;
    regions.count++;
    *at = region->at;
    return CUDA_SUCCESS;
}

CUresult regions_allocate(CUdeviceptr *at, size_t bytes) {
    pthread_mutex_lock(&regions.lock);
    CUresult result = allocate(at, bytes);
    pthread_mutex_unlock(&regions.lock);
    return result;
}

/* The region that begins at `at`, or NULL. The lock is held. */
static struct region *find(CUdeviceptr at) {
    size_t index = after(at);
    struct region *region = index ? regions.sorted[index - 1] : NULL;
    return region && region->at == at ? region : NULL;
}

/* Strike it off the list. The lock is held. */
static void remove_region(const struct region *region) {
    size_t index = after(region->at);
    memmove(&regions.sorted[index - 1], &regions.sorted[index], (regions.count - index) * sizeof *regions.sorted);
    regions.count--;
}

bool regions_free(CUdeviceptr at, CUresult *result) {
    pthread_mutex_lock(&regions.lock);
    struct region *region = find(at);
    CUcontext context = region ? region->context : NULL, before = NULL;
    bool mapped = region && region->mapped;
    pthread_mutex_unlock(&regions.lock);
    if (region == NULL)
        return false;
    cuda.ctx_get_current(&before);
    cuda.ctx_set_current(context);
    /* cudaFree waits until the device is idle, and callers count on that; nobody else has to wait for it with them. */
    CUresult idle = mapped ? cuda.ctx_synchronize() : CUDA_SUCCESS;
    pthread_mutex_lock(&regions.lock);
    region = find(at);
    if (region == NULL)
        idle = CUDA_ERROR_INVALID_VALUE; /* freed by somebody else meanwhile */
    else {
        remove_region(region);
        if (idle == CUDA_SUCCESS)
            discard(region);
        else if (grow(&waiting, waiting_count, &waiting_room))
            waiting[waiting_count++] = region;
    }
    pthread_mutex_unlock(&regions.lock);
    *result = idle == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED ? CUDA_SUCCESS : idle;
    cuda.ctx_set_current(before);
    return true;
}

bool regions_contain(CUdeviceptr at) {
    pthread_mutex_lock(&regions.lock);
    size_t index = after(at);
    const struct region *region = index ? regions.sorted[index - 1] : NULL;
    bool ours = region != NULL && at - region->at < region->bytes;
    pthread_mutex_unlock(&regions.lock);
    return ours;
}

CUresult regions_set_access(int who, int whose, bool allowed) {
    if (who < 0 || whose < 0 || who >= MAX_DEVICES || whose >= MAX_DEVICES || who == whose)
        return CUDA_SUCCESS;
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&regions.lock);
    uint64_t bit = 1ull << who;
    uint64_t *accessors = &regions.devices[whose].accessors;
    *accessors = allowed ? *accessors | bit : *accessors & ~bit;
    for (size_t i = 0; i < regions.count; i++) {
        const struct region *region = regions.sorted[i];
        /* Access that was given is not taken back from what is mapped: the driver has no way for one device alone. */
        if (allowed && region->device == whose && region->mapped) {
            CUresult one = set_access(region);
            if (one != CUDA_SUCCESS)
                result = one;
        }
    }
    pthread_mutex_unlock(&regions.lock);
    return result;
}
