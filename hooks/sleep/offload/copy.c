/* The copies. Each thread has two pinned buffers and two streams: while one is on the bus, the other is copied from or
 * into ordinary memory and checksummed. The store is never pinned: to pin 17 GB takes 0.6 s, and as much to undo (seen on
 * an H200).
 */
#define _GNU_SOURCE
#include "copy.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "crc32c.h"

/* A chunk to copy. */
struct item {
    CUdeviceptr at;
    size_t bytes;
    struct chunk *chunk;
};

/* The part of one device. */
struct lane {
    struct run *run;
    int device;
    struct item *items;
    size_t count;
    atomic_size_t next;
};

/* Everything that the threads share. */
struct run {
    struct copy *copy;
    atomic_bool failed;
    pthread_mutex_t lock; /* of `copy->damaged` and `*why` */
    struct failure *why;
    _Atomic uint64_t used, copied;
};

/* One thread. */
struct worker {
    struct lane *lane;
    bool started;
    pthread_t thread;
    CUcontext context;
    char *ring[2]; /* one allocation */
    CUstream stream[2];
};

double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

unsigned threads_of(unsigned chosen) {
    enum { FEWEST = 2, MOST = 16 }; /* 16 fill the bus of an H200 (seen) */
    cpu_set_t ours;
    if (chosen)
        return chosen;
    int count = sched_getaffinity(0, sizeof ours, &ours) == 0 ? CPU_COUNT(&ours) : FEWEST;
    return count < FEWEST ? FEWEST : count > MOST ? MOST : (unsigned)count;
}

static bool stop(struct run *run, const char *call, CUresult result) {
    pthread_mutex_lock(&run->lock);
    if (!atomic_exchange(&run->failed, true))
        fail_cuda(run->why, call, result);
    pthread_mutex_unlock(&run->lock);
    return false;
}

/* Copy, with a checksum if it is wanted. */
static uint32_t move(const struct store *store, char *to, const char *from, size_t bytes) {
    if (store->verified)
        return crc32c_copy(to, from, bytes);
    memcpy(to, from, bytes);
    return 0;
}

static bool all_zeros(const char *data, size_t bytes) { return data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0; }

/* A chunk has arrived in a buffer: keep it. */
static bool keep(struct worker *worker, int half, const struct item *item) {
    struct run *run = worker->lane->run;
    struct store *store = run->copy->store;
    CUresult result = cuda.stream_synchronize(worker->stream[half]);
    if (result != CUDA_SUCCESS)
        return stop(run, "a copy from the GPU", result);
    const char *ring = worker->ring[half];
    if (run->copy->look && all_zeros(ring, item->bytes)) {
        item->chunk->at = CHUNK_ZERO;
        return true;
    }
    item->chunk->at = atomic_fetch_add(&run->used, store->chunk_bytes);
    item->chunk->crc = move(store, store->base + item->chunk->at, ring, item->bytes);
    atomic_fetch_add(&run->copied, item->bytes);
    return true;
}

static bool bring_out(struct worker *worker) {
    struct lane *lane = worker->lane;
    struct run *run = lane->run;
    const struct item *before = NULL;
    int half = 0;
    for (size_t i; !atomic_load(&run->failed) && (i = atomic_fetch_add(&lane->next, 1)) < lane->count;) {
        const struct item *item = &lane->items[i];
        CUresult result = cuda.memcpy_dtoh_async(worker->ring[half], item->at, item->bytes, worker->stream[half]);
        if (result != CUDA_SUCCESS)
            return stop(run, "cuMemcpyDtoHAsync", result);
        if (before && !keep(worker, !half, before))
            return false;
        before = item;
        half = !half;
    }
    return before == NULL || keep(worker, !half, before);
}

static void note_damage(struct run *run, const struct lane *lane, const struct item *item) {
    pthread_mutex_lock(&run->lock);
    struct copy *copy = run->copy;
    if (copy->damaged_count < MAX_DAMAGED)
        copy->damaged[copy->damaged_count] = (struct damage){lane->device, item->at, item->bytes};
    copy->damaged_count++;
    pthread_mutex_unlock(&run->lock);
}

static bool bring_back(struct worker *worker) {
    struct lane *lane = worker->lane;
    struct run *run = lane->run;
    const struct store *store = run->copy->store;
    int half = 0;
    for (size_t i; !atomic_load(&run->failed) && (i = atomic_fetch_add(&lane->next, 1)) < lane->count;) {
        const struct item *item = &lane->items[i];
        CUresult result = cuda.stream_synchronize(worker->stream[half]);
        if (result != CUDA_SUCCESS)
            return stop(run, "a copy to the GPU", result);
        char *ring = worker->ring[half];
        uint32_t crc = move(store, ring, store->base + item->chunk->at, item->bytes);
        if (store->verified && crc != item->chunk->crc) {
            note_damage(run, lane, item);
            continue;
        }
        result = cuda.memcpy_htod_async(item->at, ring, item->bytes, worker->stream[half]);
        if (result != CUDA_SUCCESS)
            return stop(run, "cuMemcpyHtoDAsync", result);
        atomic_fetch_add(&run->copied, item->bytes);
        half = !half;
    }
    return true;
}

/* Buffers and streams of its own: the first threads copy while the driver still pins memory for the last ones. */
static bool equip(struct worker *worker) {
    struct run *run = worker->lane->run;
    size_t chunk_bytes = run->copy->store->chunk_bytes;
    worker->context = regions.devices[worker->lane->device].context;
    CUresult result = cuda.ctx_set_current(worker->context);
    if (result != CUDA_SUCCESS)
        return stop(run, "cuCtxSetCurrent", result);
    result = cuda.mem_host_alloc((void **)&worker->ring[0], 2 * chunk_bytes, CU_MEMHOSTALLOC_PORTABLE);
    if (result != CUDA_SUCCESS) {
        worker->ring[0] = NULL;
        return stop(run, "cuMemHostAlloc", result);
    }
    worker->ring[1] = worker->ring[0] + chunk_bytes;
    for (int half = 0; half < 2; half++) {
        result = cuda.stream_create(&worker->stream[half], CU_STREAM_NON_BLOCKING);
        if (result != CUDA_SUCCESS) {
            worker->stream[half] = NULL;
            return stop(run, "cuStreamCreate", result);
        }
    }
    return true;
}

static void *work(void *argument) {
    struct worker *worker = argument;
    struct run *run = worker->lane->run;
    if (equip(worker))
        (void)(run->copy->out ? bring_out(worker) : bring_back(worker));
    for (int half = 0; half < 2; half++) {
        if (worker->stream[half] == NULL)
            continue;
        /* Also after a failure: nothing may be under way into a buffer that is about to be given back. */
        CUresult result = cuda.stream_synchronize(worker->stream[half]);
        if (result != CUDA_SUCCESS)
            stop(run, run->copy->out ? "a copy from the GPU" : "a copy to the GPU", result);
    }
    return NULL;
}

void copy_clean(struct copy *copy) {
    for (size_t i = 0; copy->workers && i < (size_t)MAX_DEVICES * copy->threads; i++) {
        struct worker *worker = &copy->workers[i];
        if (!worker->started || cuda.ctx_set_current(worker->context) != CUDA_SUCCESS)
            continue;
        for (int half = 0; half < 2; half++)
            if (worker->stream[half])
                cuda.stream_destroy(worker->stream[half]);
        if (worker->ring[0])
            cuda.mem_free_host(worker->ring[0]);
    }
    free(copy->workers);
    copy->workers = NULL;
}

/* Zero chunks come back by a fill, neighbours together. */
static CUresult clear(int device, const struct store *store) {
    for (size_t i = 0; i < regions.count; i++) {
        const struct region *region = regions.sorted[i];
        if (region->device != device || region->chunks == NULL)
            continue;
        for (size_t chunk = 0, until; chunk < region->chunk_count; chunk = until + 1) {
            for (until = chunk; until < region->chunk_count && region->chunks[until].at == CHUNK_ZERO; until++)
                ;
            size_t begin = chunk * store->chunk_bytes, end = until * store->chunk_bytes;
            if (end > region->bytes)
                end = region->bytes;
            CUresult result = until == chunk ? CUDA_SUCCESS : cuda.memset_d8_async(region->at + begin, 0, end - begin, NULL);
            if (result != CUDA_SUCCESS)
                return result;
        }
    }
    return CUDA_SUCCESS;
}

static bool list(struct lane *lane, size_t chunk_bytes) {
    size_t room = 0;
    for (size_t i = 0; i < regions.count; i++)
        if (regions.sorted[i]->device == lane->device && regions.sorted[i]->chunks)
            room += regions.sorted[i]->chunk_count;
    lane->items = malloc((room + 1) * sizeof *lane->items);
    for (size_t i = 0; lane->items && i < regions.count; i++) {
        const struct region *region = regions.sorted[i];
        if (region->device != lane->device || region->chunks == NULL)
            continue;
        for (size_t chunk = 0; chunk < region->chunk_count; chunk++) {
            size_t begin = chunk * chunk_bytes, rest = region->bytes - begin;
            if (region->chunks[chunk].at != CHUNK_ZERO)
                lane->items[lane->count++] = (struct item){
                    .at = region->at + begin,
                    .bytes = rest < chunk_bytes ? rest : chunk_bytes,
                    .chunk = &region->chunks[chunk],
                };
        }
    }
    return lane->items != NULL;
}

static bool prepare(struct lane *lane, struct run *run, int device) {
    struct copy *copy = run->copy;
    lane->run = run;
    lane->device = device;
    atomic_init(&lane->next, 0);
    if (!list(lane, copy->store->chunk_bytes))
        return fail_host_memory(run->why, sizeof *lane->items, "the list of chunks");
    CUresult result = cuda.ctx_set_current(regions.devices[device].context);
    if (result == CUDA_SUCCESS && !copy->out)
        result = clear(device, copy->store);
    if (result != CUDA_SUCCESS)
        return fail_cuda(run->why, "cuMemsetD8Async", result);
    return true;
}

static void start(struct lane *lane, struct worker *workers) {
    for (unsigned i = 0; i < lane->run->copy->threads && i < lane->count; i++) {
        struct worker *worker = &workers[i];
        worker->lane = lane;
        worker->started = pthread_create(&worker->thread, NULL, work, worker) == 0;
        if (!worker->started) { /* the others do its part, unless there are none */
            if (i == 0)
                stop(lane->run, "pthread_create", CUDA_ERROR_OUT_OF_MEMORY);
            return;
        }
    }
}

bool copy_run(struct copy *copy, struct failure *why) {
    copy->threads = threads_of(copy->threads);
    struct run run = {.copy = copy, .why = why, .lock = PTHREAD_MUTEX_INITIALIZER};
    struct lane lanes[MAX_DEVICES];
    struct worker *workers = calloc((size_t)MAX_DEVICES * copy->threads, sizeof *workers);
    memset(lanes, 0, sizeof lanes);
    atomic_init(&run.used, copy->store->used);
    bool ok = workers != NULL || fail_host_memory(why, sizeof *workers * copy->threads, "the threads");
    double began = now_s();
    for (int device = 0; ok && device < MAX_DEVICES; device++)
        if (regions.devices[device].known)
            ok = prepare(&lanes[device], &run, device);
    atomic_store(&run.failed, !ok); /* `why` is written already */
    double ready = now_s();
    for (int device = 0; ok && device < MAX_DEVICES; device++)
        if (lanes[device].run)
            start(&lanes[device], workers + (size_t)device * copy->threads);
    for (size_t i = 0; workers && i < (size_t)MAX_DEVICES * copy->threads; i++)
        if (workers[i].started)
            pthread_join(workers[i].thread, NULL);
    for (int device = 0; device < MAX_DEVICES; device++) {
        struct lane *lane = &lanes[device];
        if (lane->run == NULL)
            continue;
        /* The fills of zeros. */
        CUresult result = cuda.ctx_set_current(regions.devices[device].context);
        if (result == CUDA_SUCCESS)
            result = cuda.ctx_synchronize();
        if (result != CUDA_SUCCESS)
            stop(&run, "cuCtxSynchronize", result);
        free(lane->items);
    }
    copy->workers = workers;
    if (copy->out || !ok || atomic_load(&run.failed))
        copy_clean(copy);
    copy->store->used = atomic_load(&run.used);
    copy->copied_bytes = atomic_load(&run.copied);
    copy->prepare_s = ready - began;
    copy->copy_s = now_s() - ready;
    return ok && !atomic_load(&run.failed);
}
