/* What an engine does with GPU memory, by commands: linked into a C program, and loaded by a Python one as torch is.
 *
 * A command is a line; so is its answer, "ok ..." or "error CODE" with CUDA's number. See `run_command`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))
#define PLAIN __attribute__((no_sanitize("thread", "address", "undefined"))) /* loops over bytes, of which TSan makes seconds */

int cudaMalloc(void **memory, size_t bytes);
int cudaFree(void *memory);
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind);
int cudaMemset(void *memory, int value, size_t bytes);
int cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
int cudaSetDevice(int device);
int cudaDeviceEnablePeerAccess(int peer, unsigned flags);
int cudaDeviceDisablePeerAccess(int peer);
int cudaIpcGetMemHandle(void *handle, void *memory);
int cuMemAlloc_v2(unsigned long long *address, size_t bytes);
int cuMemFree_v2(unsigned long long address);
int cuIpcGetMemHandle(void *handle, unsigned long long address);

enum { BLOCK = 1 << 16, ALLOCATIONS = 256, CHUNK = 2 << 20 };

/* One allocation and what it should hold. */
struct allocation {
    char name[32], kind[16];
    char *address;
    size_t bytes;
    int device;
    bool driver; /* made by the driver's API, else by the runtime's */
    uint64_t seed;
};
static struct allocation allocations[ALLOCATIONS];

static struct allocation *find(const char *name) {
    for (int i = 0; i < ALLOCATIONS; i++)
        if (!strcmp(allocations[i].name, name)) return &allocations[i];
    return NULL;
}

/* A word that belongs to this place alone, so that chunks that changed places are found. */
PLAIN static uint64_t word_at(uint64_t seed, uint64_t index) {
    uint64_t x = seed * 0x9E3779B97F4A7C15u + index * 0xBF58476D1CE4E5B9u + 1;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

PLAIN static void expected(const struct allocation *a, size_t from, unsigned char *into, size_t bytes) {
    memset(into, 0, bytes);
    if (!strcmp(a->kind, "random")) {
        for (size_t i = 0; i < bytes; i += 8) {
            uint64_t word = word_at(a->seed, (from + i) / 8);
            memcpy(into + i, &word, bytes - i < 8 ? bytes - i : 8);
        }
    } else if (!strcmp(a->kind, "holes")) { /* every other chunk is all zeros */
        for (size_t i = 0; i < bytes; i += 8)
            if ((from + i) / CHUNK % 2) {
                uint64_t word = word_at(a->seed, (from + i) / 8);
                memcpy(into + i, &word, bytes - i < 8 ? bytes - i : 8);
            }
    } else if (!strcmp(a->kind, "ones")) {
        memset(into, 0xFF, bytes);
    } else if (!strcmp(a->kind, "first") && from == 0) { /* one byte in all, the first */
        into[0] = 1;
    } else if (!strcmp(a->kind, "last") && from + bytes == a->bytes) { /* or the last */
        into[bytes - 1] = 0x80;
    }
}

static int fill(const struct allocation *a) {
    unsigned char block[BLOCK];
    cudaSetDevice(a->device);
    for (size_t at = 0; at < a->bytes; at += BLOCK) {
        size_t bytes = a->bytes - at < BLOCK ? a->bytes - at : BLOCK;
        expected(a, at, block, bytes);
        int result = cudaMemcpy(a->address + at, block, bytes, 1);
        if (result) return result;
    }
    explicit_bzero(block, sizeof block);
    return 0;
}

PLAIN static int check(const struct allocation *a, long long *bad) {
    unsigned char block[BLOCK], wanted[BLOCK];
    cudaSetDevice(a->device);
    *bad = -1;
    for (size_t at = 0; *bad < 0 && at < a->bytes; at += BLOCK) {
        size_t bytes = a->bytes - at < BLOCK ? a->bytes - at : BLOCK;
        expected(a, at, wanted, bytes);
        int result = cudaMemcpy(block, a->address + at, bytes, 2);
        if (result) return result;
        for (size_t i = 0; i < bytes && *bad < 0; i++)
            if (block[i] != wanted[i]) *bad = (long long)(at + i);
    }
    explicit_bzero(block, sizeof block);
    explicit_bzero(wanted, sizeof wanted);
    return 0;
}

static int allocate(struct allocation *a) {
    int result = cudaSetDevice(a->device);
    if (result) return result;
    if (!a->driver) return cudaMalloc((void **)&a->address, a->bytes);
    size_t ignored;
    cudaMemGetInfo(&ignored, &ignored); /* makes the context current */
    unsigned long long address = 0;
    result = cuMemAlloc_v2(&address, a->bytes);
    a->address = (char *)(uintptr_t)address;
    return result;
}

static int release(struct allocation *a) {
    cudaSetDevice(a->device);
    int result = a->driver ? cuMemFree_v2((uintptr_t)a->address) : cudaFree(a->address);
    a->name[0] = 0;
    return result;
}

static pthread_t releaser;

static void *release_slowly(void *argument) {
    release(argument);
    return NULL;
}

/* Threads that allocate and free, and touch nothing. */
static pthread_t churners[16];
static int churner_count;
static atomic_bool churning;
static _Atomic long rounds, failures;

static void *churn(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    void *held[4] = {0};
    cudaSetDevice(0);
    while (churning) {
        void **place = &held[rand_r(&seed) % 4];
        if (*place) {
            failures += cudaFree(*place) != 0;
            *place = NULL;
        } else if (cudaMalloc(place, (size_t)(rand_r(&seed) % 4 + 1) << 20)) {
            failures++;
            *place = NULL;
        }
        rounds++;
        usleep(200);
    }
    for (int i = 0; i < 4; i++)
        if (held[i]) failures += cudaFree(held[i]) != 0;
    return NULL;
}

/* Flip one bit wherever this process keeps the contents of `a` at `offset` in ordinary memory; how many places had it. */
static int flip(const struct allocation *a, size_t offset) {
    unsigned char needle[64], block[BLOCK];
    size_t from = offset / BLOCK * BLOCK;
    expected(a, from, block, a->bytes - from < BLOCK ? a->bytes - from : BLOCK);
    memcpy(needle, block + (offset - from), sizeof needle);
    explicit_bzero(block, sizeof block);
    FILE *maps = fopen("/proc/self/maps", "re");
    int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC), found = 0;
    char line[512], *buffer = malloc(CHUNK);
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long long start, end, inode;
        char rights[8], name[256] = "";
        sscanf(line, "%llx-%llx %7s %*x %*s %llu %255s", &start, &end, rights, &inode, name);
        bool ours = (uintptr_t)buffer >= start && (uintptr_t)buffer < end;
        if (rights[0] != 'r' || rights[1] != 'w' || inode || name[0] == '[' || ours) continue;
        for (unsigned long long at = start; at < end; at += CHUNK) {
            size_t bytes = end - at < CHUNK ? end - at : CHUNK;
            ssize_t got = pread(memory, buffer, bytes, (off_t)at);
            for (char *hit = buffer; got > 0 && (hit = memmem(hit, (size_t)(buffer + got - hit), needle, sizeof needle)); hit++) {
                unsigned char *place = (unsigned char *)(uintptr_t)(at + (unsigned long long)(hit - buffer));
                if (place == needle) continue; /* on the stack of this thread */
                *place ^= 0x10; /* not by pwrite: gVisor's /proc/self/mem can only be read */
                found++;
            }
        }
    }
    if (maps) fclose(maps);
    close(memory);
    free(buffer);
    explicit_bzero(needle, sizeof needle);
    return found;
}

static long stub_number(const char *name) {
    size_t (*function)(void) = NULL;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (!driver) return -1;
    *(void **)&function = dlsym(driver, name);
    dlclose(driver);
    return function ? (long)function() : -1;
}

static int set_fault(const char *name, const char *value) {
    int (*function)(const char *, const char *) = NULL;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver) *(void **)&function = dlsym(driver, "fakeCudaFault");
    int result = function ? function(name, value) : -1;
    if (driver) dlclose(driver);
    return result;
}

static int child_allocates(void) {
    pid_t child = fork();
    if (child == 0) {
        void *memory;
        _exit(cudaMalloc(&memory, (size_t)64 << 20));
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* A worker that does nothing, until its parent has ended. */
static int lingering_child(void) {
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pause();
        _exit(0);
    }
    return child;
}

/* How many bytes the library answers to a process of another user; -1: it cannot even connect. */
static int stranger_hears(const char *folder, const char *name, uid_t user) {
    pid_t child = fork();
    if (child == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        snprintf(address.sun_path, sizeof address.sun_path, "%.100s", name);
        char answer[4096];
        int connection = socket(AF_UNIX, SOCK_STREAM, 0);
        if (chdir(folder) || setresuid(user, user, user) ||
            connect(connection, (struct sockaddr *)&address, sizeof address))
            _exit(255);
        ssize_t sent = send(connection, "{\"op\": \"status\"}\n", 17, MSG_NOSIGNAL);
        ssize_t got = sent < 0 ? 0 : read(connection, answer, sizeof answer);
        _exit(got > 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status) == 255 ? -1 : WEXITSTATUS(status);
}

/* An allocation of a thread that has no context. */
static void *strays(void *bytes) {
    unsigned long long address = 0;
    return (void *)(uintptr_t)cuMemAlloc_v2(&address, (size_t)(uintptr_t)bytes);
}

#define SAY(...) snprintf(answer, room, __VA_ARGS__)

/* Obey one line. alloc NAME BYTES [DEVICE [driver]] | free NAME [apart] | join | fill NAME KIND SEED | set NAME | check NAME | touch NAME |
 * read NAME DEVICE | info DEVICE | peer FROM TO [off] | ipc NAME [driver] | churn THREADS (0 ends it) | flip NAME OFFSET |
 * fault NAME VALUE | number FUNCTION | stray BYTES | fork | linger | stranger FOLDER NAME USER */
PUBLIC void run_command(const char *line, char *answer, size_t room) {
    char what[32] = "", a[256] = "", b[32] = "", c[32] = "", d[32] = "";
    sscanf(line, "%31s %255s %31s %31s %31s", what, a, b, c, d);
    struct allocation *named = a[0] ? find(a) : NULL;
    int result = 0;
    if (!strcmp(what, "alloc") && (named = find(""))) {
        *named = (struct allocation){.bytes = strtoull(b, NULL, 10), .device = atoi(c), .driver = !strcmp(d, "driver")};
        result = allocate(named);
        if (result) {
            SAY("error %d", result);
            return;
        }
        snprintf(named->name, sizeof named->name, "%.31s", a);
        SAY("ok %p", (void *)named->address);
    } else if (!strcmp(what, "info")) {
        size_t free_bytes = 0, total = 0;
        cudaSetDevice(atoi(a));
        result = cudaMemGetInfo(&free_bytes, &total);
        if (result) SAY("error %d", result);
        else SAY("ok %zu %zu", total - free_bytes, total);
    } else if (!strcmp(what, "peer")) {
        cudaSetDevice(atoi(a));
        result = strcmp(c, "off") ? cudaDeviceEnablePeerAccess(atoi(b), 0) : cudaDeviceDisablePeerAccess(atoi(b));
        SAY(result ? "error %d" : "ok", result);
    } else if (!strcmp(what, "churn") && atoi(a)) {
        churning = true;
        rounds = failures = 0;
        for (churner_count = 0; churner_count < atoi(a) && churner_count < 16; churner_count++)
            pthread_create(&churners[churner_count], NULL, churn, (void *)(uintptr_t)(churner_count + 1));
        SAY("ok");
    } else if (!strcmp(what, "churn")) {
        churning = false;
        while (churner_count) pthread_join(churners[--churner_count], NULL);
        SAY("ok %ld %ld", (long)rounds, (long)failures);
    } else if (!strcmp(what, "fault")) {
        SAY(set_fault(a, b) ? "error -1" : "ok");
    } else if (!strcmp(what, "join")) { /* the thread of "free NAME apart" */
        pthread_join(releaser, NULL);
        SAY("ok");
    } else if (!strcmp(what, "number")) {
        SAY("ok %ld", stub_number(a));
    } else if (!strcmp(what, "stray")) {
        void *code = NULL;
        pthread_t thread;
        pthread_create(&thread, NULL, strays, (void *)(uintptr_t)strtoull(a, NULL, 10));
        pthread_join(thread, &code);
        SAY("error %d", (int)(uintptr_t)code);
    } else if (!strcmp(what, "fork")) {
        SAY("ok %d", child_allocates());
    } else if (!strcmp(what, "linger")) {
        SAY("ok %d", lingering_child());
    } else if (!strcmp(what, "stranger")) {
        SAY("ok %d", stranger_hears(a, b, (uid_t)atoi(c)));
    } else if (!named) {
        SAY("error unknown");
    } else if (!strcmp(what, "free") && !strcmp(b, "apart")) {
        SAY(pthread_create(&releaser, NULL, release_slowly, named) ? "error -1" : "ok");
    } else if (!strcmp(what, "free")) {
        result = release(named);
        SAY(result ? "error %d" : "ok", result);
    } else if (!strcmp(what, "fill")) {
        snprintf(named->kind, sizeof named->kind, "%.15s", b);
        named->seed = strtoull(c, NULL, 10);
        result = fill(named);
        SAY(result ? "error %d" : "ok", result);
    } else if (!strcmp(what, "set")) { /* work that may still be under way when the call is back */
        snprintf(named->kind, sizeof named->kind, "ones");
        cudaSetDevice(named->device);
        result = cudaMemset(named->address, 0xFF, named->bytes);
        SAY(result ? "error %d" : "ok", result);
    } else if (!strcmp(what, "check")) {
        long long bad;
        result = check(named, &bad);
        if (result) SAY("error %d", result);
        else if (bad >= 0) SAY("bad %lld", bad);
        else SAY("ok");
    } else if (!strcmp(what, "touch")) {
        SAY("ok %d", *(volatile unsigned char *)named->address); /* as a kernel would */
    } else if (!strcmp(what, "read")) {
        char byte;
        cudaSetDevice(atoi(b));
        result = cudaMemcpy(&byte, named->address, 1, 2);
        SAY(result ? "error %d" : "ok", result);
    } else if (!strcmp(what, "ipc")) {
        char handle[64];
        cudaSetDevice(named->device);
        result = !strcmp(b, "driver") ? cuIpcGetMemHandle(handle, (uintptr_t)named->address)
                                      : cudaIpcGetMemHandle(handle, named->address);
        SAY(result ? "error %d" : "ok", result);
    } else if (!strcmp(what, "flip")) {
        SAY("ok %d", flip(named, strtoull(b, NULL, 10)));
    } else {
        SAY("error unknown");
    }
}
