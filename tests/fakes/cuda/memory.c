/* Memory of the devices: plain allocations, and reserved addresses with physical memory mapped into them. */
#define _GNU_SOURCE
#include "stub.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

struct physical { /* what cuMemCreate gives: lost when neither a handle nor a mapping holds it */
    struct physical *next;
    size_t bytes;
    int device, descriptor, references;
    bool handle_open;
};
struct span { /* a plain allocation, a reservation or a mapping */
    struct span *next;
    char *start;
    size_t bytes;
    int device;                /* of a plain allocation */
    struct physical *physical; /* of a mapping */
    unsigned access;           /* of a mapping: a bit for every device that may touch it */
};

static struct physical *physicals;
static struct span *plain, *reserved, *mapped;
static size_t used[MAX_DEVICES];
static pthread_rwlock_t lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP; /* copies read, changes write */

void memory_read_lock(void) { pthread_rwlock_rdlock(&lock); }
void memory_unlock(void) { pthread_rwlock_unlock(&lock); }

static size_t number(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? (size_t)strtoull(text, NULL, 10) : otherwise;
}

size_t fakeCudaTotal(int device) {
    (void)device;
    return number("FAKE_CUDA_BYTES", (size_t)1 << 30);
}

size_t fakeCudaUsed(int device) {
    memory_read_lock();
    size_t bytes = used[device];
    memory_unlock();
    return bytes;
}

static size_t rounded(size_t bytes) { return (bytes + GRANULARITY - 1) / GRANULARITY * GRANULARITY; }

/* One GPU for several processes: a file, FAKE_CUDA_SHARED, with what each of them uses. Those that ended use nothing. */
enum { SHARERS = 64 };
static struct sharer {
    _Atomic int pid;
    _Atomic size_t used[MAX_DEVICES];
} *sharers, *us;
static int sharers_file = -1;

static void join_sharers(void) { /* with `lock` held for writing */
    const char *path = getenv("FAKE_CUDA_SHARED");
    if (us || !path) return;
    sharers_file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (sharers_file < 0 || flock(sharers_file, LOCK_EX) || ftruncate(sharers_file, SHARERS * sizeof *sharers)) abort();
    sharers = mmap(NULL, SHARERS * sizeof *sharers, PROT_READ | PROT_WRITE, MAP_SHARED, sharers_file, 0);
    if (sharers == MAP_FAILED) abort();
    for (us = sharers; us->pid && kill(us->pid, 0) == 0; us++)
        if (us == sharers + SHARERS - 1) abort();
    for (int device = 0; device < MAX_DEVICES; device++) us->used[device] = 0;
    us->pid = getpid();
    flock(sharers_file, LOCK_UN);
}

static size_t used_by_others(int device) {
    size_t bytes = 0;
    for (struct sharer *each = sharers; each && each < sharers + SHARERS; each++)
        if (each != us && each->pid && kill(each->pid, 0) == 0) bytes += each->used[device];
    return bytes;
}

static void use(int device, size_t bytes) {
    used[device] += bytes;
    if (us) us->used[device] = used[device];
}

static void unuse(int device, size_t bytes) { use(device, -bytes); }

void context_comes(int device) {
    pthread_rwlock_wrlock(&lock);
    join_sharers();
    use(device, number("FAKE_CUDA_CONTEXT_BYTES", (size_t)16 << 20));
    memory_unlock();
}

static bool take(int device, size_t bytes) {
    join_sharers();
    if (us) flock(sharers_file, LOCK_EX);
    size_t total = fakeCudaTotal(device), taken = used[device] + used_by_others(device);
    bool room = taken <= total && bytes <= total - taken;
    if (room) use(device, bytes);
    if (us) flock(sharers_file, LOCK_UN);
    return room;
}

static void add(struct span **list, char *start, size_t bytes, int device, struct physical *physical) {
    struct span *made = calloc(1, sizeof *made);
    *made = (struct span){.next = *list, .start = start, .bytes = bytes, .device = device, .physical = physical};
    *list = made;
}

static struct span **find_exactly(struct span **list, const void *start) {
    for (; *list; list = &(*list)->next)
        if ((*list)->start == start) return list;
    return NULL;
}

static struct span *find_around(struct span *list, const char *start, size_t bytes) {
    for (; list; list = list->next)
        if (start >= list->start && bytes <= list->bytes && (size_t)(start - list->start) <= list->bytes - bytes) return list;
    return NULL;
}

static void drop(struct span **place) {
    struct span *gone = *place;
    *place = gone->next;
    free(gone);
}

static char *as_pointer(CUdeviceptr address) { return (char *)(uintptr_t)address; }

/* The bytes from `start` that mappings cover without a hole, at most `bytes`; `only` limits it to one device's access. */
static size_t covered(const char *start, size_t bytes, int only) {
    size_t done = 0;
    while (done < bytes) {
        struct span *around = find_around(mapped, start + done, 1);
        if (!around || (only >= 0 && !(around->access >> only & 1))) break;
        done = (size_t)(around->start + around->bytes - start);
    }
    return done < bytes ? done : bytes;
}

bool device_can_touch(int device, CUdeviceptr address, size_t bytes) {
    char *start = as_pointer(address);
    return find_around(plain, start, bytes) || covered(start, bytes, device) == bytes;
}

bool is_device_memory(CUdeviceptr address) {
    char *start = as_pointer(address);
    return find_around(plain, start, 1) || find_around(reserved, start, 1);
}

PUBLIC CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    size_t in_use = fakeCudaUsed(context->device) + used_by_others(context->device);
    *total_bytes = fakeCudaTotal(context->device);
    *free_bytes = *total_bytes > in_use ? *total_bytes - in_use : 0;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    if (!bytes || !address) return CUDA_ERROR_INVALID_VALUE;
    size_t size = rounded(bytes);
    pthread_rwlock_wrlock(&lock);
    if (size < bytes || !take(context->device, size)) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        char *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED) abort();
        memset(start, 0xA5, bytes < GRANULARITY ? bytes : 0); /* nobody promises zeros */
        add(&plain, start, size, context->device, NULL);
        *address = (uintptr_t)start;
    }
    memory_unlock();
    return result;
}

PUBLIC CUresult cuMemFree_v2(CUdeviceptr address) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    result = run_context(context, false); /* the real one waits for the device too */
    if (result) return result;
    pthread_rwlock_wrlock(&lock);
    struct span **place = find_exactly(&plain, as_pointer(address));
    if (!place) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else {
        unuse((*place)->device, (*place)->bytes);
        munmap((*place)->start, (*place)->bytes);
        drop(place);
    }
    memory_unlock();
    return result;
}

PUBLIC CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop, int option) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!prop || prop->type != 1 || prop->location.type != 1 || option < 0 || option > 1) return CUDA_ERROR_INVALID_VALUE;
    *bytes = GRANULARITY;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr wish,
                                    unsigned long long flags) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!bytes || bytes % GRANULARITY || flags || (alignment & (alignment - 1))) return CUDA_ERROR_INVALID_VALUE;
    if (fault_hits(FAULT_RESERVE)) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t align = alignment > GRANULARITY ? alignment : GRANULARITY;
    int flags_of_map = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *start = MAP_FAILED;
    if (wish && wish % align == 0)
        start = mmap(as_pointer(wish), bytes, PROT_NONE, flags_of_map | MAP_FIXED_NOREPLACE, -1, 0);
    if (start == MAP_FAILED) {
        char *wide = mmap(NULL, bytes + align, PROT_NONE, flags_of_map, -1, 0);
        if (wide == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
        size_t before = (align - (uintptr_t)wide % align) % align;
        start = wide + before;
        if (before) munmap(wide, before);
        munmap(start + bytes, align - before);
    }
    pthread_rwlock_wrlock(&lock);
    add(&reserved, start, bytes, 0, NULL);
    memory_unlock();
    *address = (uintptr_t)start;
    return CUDA_SUCCESS;
}

PUBLIC CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&lock);
    struct span **place = find_exactly(&reserved, as_pointer(address));
    bool empty = true;
    for (struct span *each = mapped; place && each; each = each->next)
        if (each->start >= (*place)->start && each->start < (*place)->start + (*place)->bytes) empty = false;
    if (place && (*place)->bytes == bytes && empty) {
        munmap((*place)->start, bytes);
        drop(place);
        result = CUDA_SUCCESS;
    }
    memory_unlock();
    return result;
}

PUBLIC CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *prop,
                            unsigned long long flags) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!bytes || bytes % GRANULARITY || flags || !prop || prop->type != 1 || prop->location.type != 1)
        return CUDA_ERROR_INVALID_VALUE;
    int device = prop->location.id;
    if (device < 0 || device >= device_count()) return CUDA_ERROR_INVALID_DEVICE;
    if (fault_hits(FAULT_CREATE)) return CUDA_ERROR_OUT_OF_MEMORY;
    bool dirty = fault_hits(FAULT_DIRTY);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_rwlock_wrlock(&lock);
    if (take(device, bytes)) {
        struct physical *made = calloc(1, sizeof *made);
        *made = (struct physical){.next = physicals, .bytes = bytes, .device = device, .references = 1, .handle_open = true};
        made->descriptor = memfd_create("fake-cuda", MFD_CLOEXEC);
        if (made->descriptor < 0 || ftruncate(made->descriptor, (off_t)bytes)) abort();
        char dirt[1 << 16];
        memset(dirt, 0xA5, sizeof dirt);
        for (size_t at = 0; dirty && at < bytes; at += sizeof dirt)
            if (pwrite(made->descriptor, dirt, sizeof dirt, (off_t)at) != (ssize_t)sizeof dirt) abort();
        physicals = made;
        *handle = (uintptr_t)made;
        result = CUDA_SUCCESS;
    }
    memory_unlock();
    return result;
}

static struct physical *open_handle(CUmemGenericAllocationHandle handle) {
    for (struct physical *each = physicals; each; each = each->next)
        if ((uintptr_t)each == handle) return each->handle_open ? each : NULL;
    return NULL;
}

static void let_go(struct physical *physical) {
    if (--physical->references) return;
    struct physical **place = &physicals;
    while (*place != physical) place = &(*place)->next;
    *place = physical->next;
    unuse(physical->device, physical->bytes);
    close(physical->descriptor);
    free(physical);
}

PUBLIC CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (fault_hits(FAULT_RELEASE)) return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&lock);
    struct physical *physical = open_handle(handle);
    if (physical) {
        physical->handle_open = false;
        let_go(physical);
    }
    memory_unlock();
    return physical ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

PUBLIC CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                         unsigned long long flags) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!bytes || bytes % GRANULARITY || address % GRANULARITY || offset || flags) return CUDA_ERROR_INVALID_VALUE;
    if (fault_hits(FAULT_MAP)) return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    char *start = as_pointer(address);
    pthread_rwlock_wrlock(&lock);
    struct physical *physical = open_handle(handle);
    bool there = false;
    for (struct span *each = mapped; each; each = each->next)
        there = there || (each->start < start + bytes && start < each->start + each->bytes);
    if (physical && bytes <= physical->bytes && find_around(reserved, start, bytes) && !there) {
        if (mmap(start, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, physical->descriptor, 0) != start) abort();
        add(&mapped, start, bytes, 0, physical);
        physical->references++;
        result = CUDA_SUCCESS;
    }
    memory_unlock();
    return result;
}

/* Whether whole mappings, and nothing else, make up the span. */
static bool exactly_mapped(const char *start, size_t bytes) {
    if (covered(start, bytes, -1) < bytes || !find_exactly(&mapped, start)) return false;
    struct span *last = find_around(mapped, start + bytes - 1, 1);
    return last->start + last->bytes == start + bytes;
}

PUBLIC CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (fault_hits(FAULT_UNMAP)) return CUDA_ERROR_INVALID_VALUE;
    char *start = as_pointer(address);
    pthread_rwlock_wrlock(&lock);
    bool right = bytes && exactly_mapped(start, bytes);
    for (struct span **place = &mapped; right && *place;) {
        if ((*place)->start < start || (*place)->start >= start + bytes) {
            place = &(*place)->next;
            continue;
        }
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
        if (mmap((*place)->start, (*place)->bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED) abort();
        let_go((*place)->physical);
        drop(place);
    }
    memory_unlock();
    return right ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

PUBLIC CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *wanted, size_t count) {
    if (need_init()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!bytes || !wanted || !count) return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++)
        if (wanted[i].location.type != 1 || (wanted[i].flags != 0 && wanted[i].flags != 3)) return CUDA_ERROR_INVALID_VALUE;
    if (fault_hits(FAULT_ACCESS)) return CUDA_ERROR_INVALID_DEVICE;
    char *start = as_pointer(address);
    CUresult result = CUDA_SUCCESS;
    pthread_rwlock_wrlock(&lock);
    if (!exactly_mapped(start, bytes)) result = CUDA_ERROR_INVALID_VALUE;
    for (struct span *each = mapped; !result && each; each = each->next) {
        if (each->start < start || each->start >= start + bytes) continue;
        for (size_t i = 0; i < count && !result; i++) {
            int device = wanted[i].location.id;
            bool there = device >= 0 && device < device_count();
            if (!there || (device != each->physical->device && getenv("FAKE_CUDA_NO_PEERS"))) {
                result = CUDA_ERROR_INVALID_DEVICE;
            } else {
                each->access = wanted[i].flags ? each->access | 1u << device : each->access & ~(1u << device);
            }
        }
        if (mprotect(each->start, each->bytes, each->access ? PROT_READ | PROT_WRITE : PROT_NONE)) abort();
    }
    memory_unlock();
    return result;
}

PUBLIC CUresult cuIpcGetMemHandle(void *handle, CUdeviceptr address) {
    CUcontext context;
    CUresult result = need_context(&context);
    if (result) return result;
    memory_read_lock();
    bool shareable = find_around(plain, as_pointer(address), 1) != NULL; /* memory of cuMemCreate is not */
    memory_unlock();
    if (!shareable) return CUDA_ERROR_INVALID_VALUE;
    memset(handle, 7, 64);
    return CUDA_SUCCESS;
}
