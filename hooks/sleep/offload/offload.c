/* The transitions. A failure in the middle is undone: memory is in one place or in the other, never in neither. */
#define _GNU_SOURCE
#include "offload.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "copy.h"
#include "host_memory.h"
#include "idle.h"
#include "nvml.h"
#include "regions.h"
#include "zeros.h"

#define HUGE_PAGE ((size_t)2 << 20)

const struct choices default_choices = {.chunk_bytes = 2 << 20, .verify = true, .idle_s = 30};

static const char *const ZEROS[] = {"gpu", "host", "none"};

/* Guarded by the lock of `regions`. */
static enum { AWAKE, ASLEEP, DAMAGED } state;
static struct store store;
static char *given_up; /* of a store whose contents are back */
static size_t given_up_bytes;
static struct copy finished; /* the reload that brought them */

static _Atomic(const char *) off;
static _Atomic size_t ipc_refused;

bool turn_off(const char *reason) {
    const char *none = NULL, *kept = strdup(reason);
    if (atomic_compare_exchange_strong(&off, &none, kept ? kept : "no memory"))
        return true;
    free((void *)kept);
    return false;
}

const char *off_reason(void) { return atomic_load(&off); }

void count_ipc_refused(void) { atomic_fetch_add(&ipc_refused, 1); }

/* Bytes by where they are. */
struct sums {
    size_t allocations;
    uint64_t bytes, stored_bytes, zero_bytes;
};

static size_t chunk_bytes_of(const struct region *region, size_t chunk) {
    size_t rest = region->bytes - chunk * store.chunk_bytes;
    return rest < store.chunk_bytes ? rest : store.chunk_bytes;
}

static struct sums sum(bool away_only) {
    struct sums sums = {0};
    for (size_t i = 0; i < regions.count; i++) {
        const struct region *region = regions.sorted[i];
        if (away_only && region->chunks == NULL)
            continue;
        sums.allocations++;
        sums.bytes += region->bytes;
        for (size_t chunk = 0; region->chunks && chunk < region->chunk_count; chunk++)
            *(region->chunks[chunk].at == CHUNK_ZERO ? &sums.zero_bytes : &sums.stored_bytes) +=
                chunk_bytes_of(region, chunk);
    }
    return sums;
}

void answer_failure(const char *code, const char *detail, struct text *answer) {
    text_add(answer, "{\"ok\": false, \"error\": \"%s\", \"detail\": ", code);
    text_add_quoted(answer, detail);
    text_add(answer, "}");
}

static void answer_why(const struct failure *why, struct text *answer) {
    text_add(answer, "{\"ok\": false, \"error\": \"%s\", \"detail\": ", why->code);
    text_add_quoted(answer, why->detail);
    text_add(answer, "%s}", why->fields);
}

static void add_sums(const struct sums *sums, struct text *answer) {
    text_add(answer, "\"allocations\": %zu, \"bytes\": %llu, \"stored_bytes\": %llu, \"zero_bytes\": %llu",
             sums->allocations, (unsigned long long)sums->bytes, (unsigned long long)sums->stored_bytes,
             (unsigned long long)sums->zero_bytes);
}

static void add_device(int device, struct text *answer) {
    size_t unused = 0, total = 0;
    uint64_t caught = 0, process_bytes = 0;
    for (size_t i = 0; i < regions.count; i++)
        if (regions.sorted[i]->device == device)
            caught += regions.sorted[i]->bytes;
    text_add(answer, "{\"device\": %d, \"bytes\": %llu", device, (unsigned long long)caught);
    char name[96];
    CUresult result = cuda.ctx_set_current(regions.devices[device].context);
    if (result == CUDA_SUCCESS)
        result = cuda.mem_get_info(&unused, &total);
    if (result == CUDA_SUCCESS)
        text_add(answer, ", \"used_bytes\": %zu, \"total_bytes\": %zu", total - unused, total);
    else
        text_add(answer, ", \"used_bytes\": null, \"total_bytes\": null, \"code\": %d, \"name\": \"%.*s\"", result,
                 (int)strcspn(cuda_error_text(result, name, sizeof name), " "), name);
    if (nvml_process_bytes(device, &process_bytes))
        text_add(answer, ", \"process_bytes\": %llu", (unsigned long long)process_bytes);
    else
        text_add(answer, ", \"process_bytes\": null");
    text_add(answer, ", \"before_bytes\": %llu}", (unsigned long long)regions.devices[device].before_bytes);
}

void answer_status(struct text *answer) {
    static const char *const names[] = {"awake", "asleep", "damaged"};
    pthread_mutex_lock(&regions.lock);
    struct sums sums = sum(false);
    const char *reason = off_reason();
    text_add(answer, "{\"ok\": true, \"version\": 1, \"pid\": %d, \"state\": \"%s\", ", (int)getpid(),
             reason && sums.allocations == 0 ? "off" : names[state]);
    if (reason) {
        text_add(answer, "\"reason\": ");
        text_add_quoted(answer, reason);
        text_add(answer, ", ");
    }
    add_sums(&sums, answer);
    text_add(answer, ", \"ipc_refused\": %zu, \"devices\": [", atomic_load(&ipc_refused));
    bool first = true;
    for (int device = 0; device < MAX_DEVICES; device++) {
        if (!regions.devices[device].known)
            continue;
        text_add(answer, first ? "" : ", ");
        add_device(device, answer);
        first = false;
    }
    text_add(answer, "]}");
    pthread_mutex_unlock(&regions.lock);
}

/* Forget where the contents were; their memory goes later when `later`. */
static void drop_store(bool later) {
    for (size_t i = 0; i < regions.count; i++) {
        free(regions.sorted[i]->chunks);
        regions.sorted[i]->chunks = NULL;
        regions.sorted[i]->chunk_count = 0;
    }
    if (store.base && later) {
        given_up = store.base;
        given_up_bytes = store.room;
    } else if (store.base)
        munmap(store.base, store.room);
    memset(&store, 0, sizeof store);
}

void give_back(void) {
    copy_clean(&finished);
    /* In slices, so that nobody in this process waits long for the lock of its address space. */
    const size_t slice = (size_t)256 << 20;
    for (size_t done = 0; done < given_up_bytes; done += slice)
        munmap(given_up + done, given_up_bytes - done < slice ? given_up_bytes - done : slice);
    given_up = NULL;
    given_up_bytes = 0;
}

/* Memory for everything that is not known to be zeros. */
static bool open_store(const struct choices *choices, struct failure *why) {
    store.chunk_bytes = choices->chunk_bytes;
    store.verified = choices->verify;
    for (size_t i = 0; i < regions.count; i++) {
        struct region *region = regions.sorted[i];
        region->chunk_count = (region->bytes + store.chunk_bytes - 1) / store.chunk_bytes;
        region->chunks = calloc(region->chunk_count, sizeof *region->chunks);
        if (region->chunks == NULL)
            return fail_host_memory(why, region->chunk_count * sizeof *region->chunks, "the list of chunks");
    }
    return true;
}

static bool map_store(struct failure *why) {
    size_t chunks = 0;
    for (size_t i = 0; i < regions.count; i++)
        for (size_t chunk = 0; chunk < regions.sorted[i]->chunk_count; chunk++)
            chunks += regions.sorted[i]->chunks[chunk].at != CHUNK_ZERO;
    size_t bytes = chunks * store.chunk_bytes;
    if (bytes == 0)
        return true;
    if (bytes > host_memory_room("")) /* who uses more than there is, is killed for it */
        return fail_host_memory(why, bytes, "the contents of GPU memory");
    size_t room = bytes + HUGE_PAGE;
    char *base = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return fail_host_memory(why, bytes, "the contents of GPU memory");
    madvise(base, room, MADV_HUGEPAGE); /* a fault for each 2 MiB, not for each 4 KiB; without them it is just slower */
    store.base = base;
    store.room = room;
    store.used = (HUGE_PAGE - (size_t)base % HUGE_PAGE) % HUGE_PAGE;
    return true;
}

/* Everything mapped whose contents are away, unmapped again. */
static void unmap_all(void) {
    const char *call;
    for (size_t i = 0; i < regions.count; i++)
        if (regions.sorted[i]->mapped && regions.sorted[i]->chunks)
            region_unmap(regions.sorted[i], &call);
}

static bool map_all(struct failure *why) {
    for (size_t i = 0; i < regions.count; i++) {
        struct region *region = regions.sorted[i];
        if (region->mapped)
            continue;
        const char *call;
        CUresult result = cuda.ctx_set_current(regions.devices[region->device].context);
        call = "cuCtxSetCurrent";
        if (result == CUDA_SUCCESS)
            result = region_map(region, &call);
        if (result == CUDA_SUCCESS)
            continue;
        fail_cuda(why, call, result);
        unmap_all();
        size_t unused = 0, total = 0;
        if (result == CUDA_ERROR_OUT_OF_MEMORY && cuda.mem_get_info(&unused, &total) == CUDA_SUCCESS) {
            uint64_t wanted = 0;
            for (size_t other = 0; other < regions.count; other++)
                if (regions.sorted[other]->device == region->device && regions.sorted[other]->chunks)
                    wanted += regions.sorted[other]->bytes;
            fail(why, "out_of_gpu_memory", "GPU %d has %.1f GB free, and %.1f GB are to come back to it",
                 region->device, (double)unused / 1e9, (double)wanted / 1e9);
            add_field(why, "\"wanted_bytes\": %llu, \"free_bytes\": %zu, \"device\": %d", (unsigned long long)wanted,
                      unused, region->device);
        }
        return false;
    }
    return true;
}

static bool release_all(struct failure *why) {
    for (size_t i = 0; i < regions.count; i++) {
        struct region *region = regions.sorted[i];
        const char *call;
        CUresult result = region->mapped ? region_unmap(region, &call) : CUDA_SUCCESS;
        if (result != CUDA_SUCCESS)
            return fail_cuda(why, call, result);
    }
    return true;
}

static void describe_damage(const struct copy *copy, struct failure *why) {
    fail(why, "checksum",
         "%zu chunk(s) of the stored GPU memory are not what they were, the first at %#llx on GPU %d: they were not "
         "given to the server; only a cold start heals it",
         copy->damaged_count, copy->damaged[0].at, copy->damaged[0].device);
    add_field(why, "\"damaged_chunks\": %zu, \"damaged\": [", copy->damaged_count);
    for (size_t i = 0; i < copy->damaged_count && i < MAX_DAMAGED; i++) {
        size_t used = strlen(why->fields);
        snprintf(why->fields + used, sizeof why->fields - used, "%s{\"device\": %d, \"address\": \"%#llx\", \"bytes\": %zu}",
                 i ? ", " : "", copy->damaged[i].device, copy->damaged[i].at, copy->damaged[i].bytes);
    }
    strncat(why->fields, "]", sizeof why->fields - strlen(why->fields) - 1);
}

/* Seconds of an offload's phases. */
struct phases {
    double idle_s, prepare_s, zeros_s, copy_s, release_s;
};

static bool put_aside(const struct choices *choices, int *zeros, struct phases *took, struct failure *why) {
    if (!open_store(choices, why))
        return false;
    double began = now_s();
    *zeros = choices->zeros;
    for (int device = 0; *zeros == ZEROS_GPU && device < MAX_DEVICES; device++)
        if (regions.devices[device].known &&
            (cuda.ctx_set_current(regions.devices[device].context) != CUDA_SUCCESS ||
             !zeros_mark(device, choices->chunk_bytes)))
            *zeros = ZEROS_HOST;
    took->zeros_s = now_s() - began;
    if (!map_store(why))
        return false;
    struct copy copy = {.out = true, .look = *zeros == ZEROS_HOST, .threads = choices->threads, .store = &store};
    if (!copy_run(&copy, why))
        return false;
    took->prepare_s = copy.prepare_s;
    took->copy_s = copy.copy_s;
    began = now_s();
    if (!release_all(why)) {
        /* What is gone already comes back; what is not keeps its contents, which are those of the store. */
        struct failure again;
        struct copy back = {.threads = choices->threads, .store = &store};
        if (!map_all(&again) || !copy_run(&back, &again) || back.damaged_count)
            state = DAMAGED;
        copy_clean(&back);
        return false;
    }
    took->release_s = now_s() - began;
    return true;
}

static double rate(uint64_t bytes, double seconds) { return seconds > 0 ? (double)bytes / seconds / 1e9 : 0; }

static bool offload(const struct choices *choices, struct text *answer, struct failure *why) {
    double began = now_s();
    if (off_reason() && regions.count == 0)
        return fail(why, "off", "%s", off_reason());
    if (state == DAMAGED)
        return fail(why, "damaged", "an earlier reload found damage; only a cold start heals it");
    bool already = state == ASLEEP;
    struct phases took = {0};
    int zeros = choices->zeros;
    if (!already) {
        /* Whoever allocates or frees meanwhile need not wait too: the GPU may need them to become idle. */
        pthread_mutex_unlock(&regions.lock);
        bool idle = wait_until_idle(choices->idle_s, why);
        pthread_mutex_lock(&regions.lock);
        if (!idle)
            return false;
        took.idle_s = now_s() - began;
        regions_discard_freed();
        if (!put_aside(choices, &zeros, &took, why)) {
            if (state == AWAKE)
                drop_store(false);
            return false;
        }
        state = ASLEEP;
    }
    struct sums sums = sum(true);
    text_add(answer, "{\"ok\": true, \"state\": \"asleep\", \"already\": %s, ", already ? "true" : "false");
    add_sums(&sums, answer);
    text_add(answer,
             ", \"zeros\": \"%s\", \"threads\": %u, \"chunk_bytes\": %zu, \"seconds\": {\"idle\": %.4f, \"prepare\": %.4f, "
             "\"zeros\": %.4f, \"copy\": %.4f, \"release\": %.4f, \"total\": %.4f}, \"gb_per_s\": %.2f}",
             ZEROS[zeros], threads_of(choices->threads), store.chunk_bytes, took.idle_s, took.prepare_s, took.zeros_s, took.copy_s,
             took.release_s, now_s() - began, rate(sums.stored_bytes, took.copy_s));
    return true;
}

void answer_offload(const struct choices *choices, struct text *answer) {
    struct failure why;
    pthread_mutex_lock(&regions.lock);
    if (!offload(choices, answer, &why))
        answer_why(&why, answer);
    pthread_mutex_unlock(&regions.lock);
}

static bool reload(const struct choices *choices, struct text *answer, struct failure *why) {
    double began = now_s(), mapped = began;
    if (state == DAMAGED)
        return fail(why, "damaged", "an earlier reload found damage; only a cold start heals it");
    bool already = state == AWAKE;
    struct sums sums = sum(true);
    struct copy copy = {.threads = choices->threads, .store = &store};
    if (!already) {
        if (!map_all(why))
            return false;
        mapped = now_s();
        if (!copy_run(&copy, why)) {
            unmap_all();
            return false;
        }
        finished = copy;
        if (copy.damaged_count) {
            describe_damage(&copy, why);
            state = DAMAGED;
            drop_store(true);
            return false;
        }
        drop_store(true);
        state = AWAKE;
    }
    text_add(answer, "{\"ok\": true, \"state\": \"awake\", \"already\": %s, ", already ? "true" : "false");
    add_sums(&sums, answer);
    text_add(answer,
             ", \"threads\": %u, \"seconds\": {\"map\": %.4f, \"prepare\": %.4f, \"copy\": %.4f, \"total\": %.4f}, "
             "\"gb_per_s\": %.2f}",
             threads_of(choices->threads), mapped - began, copy.prepare_s, copy.copy_s, now_s() - began,
             rate(copy.copied_bytes, copy.copy_s));
    return true;
}

void answer_reload(const struct choices *choices, struct text *answer) {
    struct failure why;
    pthread_mutex_lock(&regions.lock);
    if (!reload(choices, answer, &why))
        answer_why(&why, answer);
    pthread_mutex_unlock(&regions.lock);
}
