/* The kernel that looks for zeros, as PTX text: the driver compiles it, so that no compiler is needed to build.
 *
 * PTX ISA: https://docs.nvidia.com/cuda/parallel-thread-execution/. One block a chunk, 256 threads of 64 bytes each at a
 * time; a chunk and the total are multiples of 16 KiB, so that no thread reads past the end.
 */
#include "zeros.h"

#include <stdlib.h>
#include <string.h>

enum { THREADS = 256, ROUND_BYTES = THREADS * 64 };

static const char ptx[] =
    ".version 6.0\n"
    ".target sm_60\n"
    ".address_size 64\n"
    ".visible .entry warmboot_nonzero(\n"
    "    .param .u64 p_base, .param .u64 p_chunk, .param .u64 p_total, .param .u64 p_flags)\n"
    "{\n"
    "    .reg .pred %ended, %any, %block, %skip;\n"
    "    .reg .b32 %v<17>, %thread, %index, %offset;\n"
    "    .reg .b64 %base, %chunk, %total, %flags, %at, %end, %wide, %flag;\n"
    "    ld.param.u64 %base, [p_base];\n"
    "    ld.param.u64 %chunk, [p_chunk];\n"
    "    ld.param.u64 %total, [p_total];\n"
    "    ld.param.u64 %flags, [p_flags];\n"
    "    mov.u32 %index, %ctaid.x;\n"
    "    mov.u32 %thread, %tid.x;\n"
    "    cvt.u64.u32 %wide, %index;\n"
    "    mul.lo.u64 %at, %wide, %chunk;\n" /* where the chunk begins, from the base */
    "    add.u64 %flag, %flags, %wide;\n"
    "    add.u64 %end, %at, %chunk;\n"
    "    min.u64 %end, %end, %total;\n"
    "    shl.b32 %offset, %thread, 4;\n"
    "    cvt.u64.u32 %wide, %offset;\n"
    "    add.u64 %at, %at, %wide;\n"
    "    add.u64 %at, %at, %base;\n"
    "    add.u64 %end, %end, %base;\n"
    "    mov.b32 %v16, 0;\n"
    "look:\n"
    "    setp.ge.u64 %ended, %at, %end;\n"
    "    @%ended bra looked;\n"
    "    ld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%at];\n"
    "    ld.global.v4.u32 {%v4, %v5, %v6, %v7}, [%at+4096];\n"
    "    ld.global.v4.u32 {%v8, %v9, %v10, %v11}, [%at+8192];\n"
    "    ld.global.v4.u32 {%v12, %v13, %v14, %v15}, [%at+12288];\n"
    "    or.b32 %v0, %v0, %v1;\n"
    "    or.b32 %v2, %v2, %v3;\n"
    "    or.b32 %v4, %v4, %v5;\n"
    "    or.b32 %v6, %v6, %v7;\n"
    "    or.b32 %v8, %v8, %v9;\n"
    "    or.b32 %v10, %v10, %v11;\n"
    "    or.b32 %v12, %v12, %v13;\n"
    "    or.b32 %v14, %v14, %v15;\n"
    "    or.b32 %v0, %v0, %v2;\n"
    "    or.b32 %v4, %v4, %v6;\n"
    "    or.b32 %v8, %v8, %v10;\n"
    "    or.b32 %v12, %v12, %v14;\n"
    "    or.b32 %v0, %v0, %v4;\n"
    "    or.b32 %v8, %v8, %v12;\n"
    "    or.b32 %v0, %v0, %v8;\n"
    "    or.b32 %v16, %v16, %v0;\n"
    "    add.u64 %at, %at, 16384;\n"
    "    bra look;\n"
    "looked:\n"
    "    setp.ne.u32 %any, %v16, 0;\n"
    "    bar.red.or.pred %block, 0, %any;\n"
    "    setp.ne.u32 %skip, %thread, 0;\n"
    "    @%skip bra done;\n"
    "    @!%block bra done;\n"
    "    mov.b32 %v0, 1;\n"
    "    st.global.u8 [%flag], %v0;\n"
    "done:\n"
    "    ret;\n"
    "}\n";

/* The kernel on a device, NULL if there is none: compiled once, which takes 20 to 60 ms, and kept. The lock is held. */
static CUfunction kernel_of(int device) {
    static struct {
        CUcontext context; /* another one means that the first was destroyed, and the kernel with it */
        CUfunction kernel;
    } known[MAX_DEVICES];
    CUcontext context = regions.devices[device].context;
    CUmodule module = NULL;
    CUfunction kernel = NULL;
    if (known[device].kernel && known[device].context == context)
        return known[device].kernel;
    if (cuda.module_load_data(&module, ptx) != CUDA_SUCCESS)
        return NULL;
    if (cuda.module_get_function(&kernel, module, "warmboot_nonzero") != CUDA_SUCCESS) {
        cuda.module_unload(module);
        return NULL;
    }
    known[device].context = context;
    return known[device].kernel = kernel;
}

/* A chunk that no thread may read past the end of. */
static bool fits(const struct region *region, size_t chunk_bytes) {
    return chunk_bytes % ROUND_BYTES == 0 && region->bytes % ROUND_BYTES == 0;
}

static bool launch(CUfunction kernel, int device, size_t chunk_bytes, CUdeviceptr flags) {
    for (size_t i = 0; i < regions.count; i++) {
        const struct region *region = regions.sorted[i];
        if (region->device != device || !region->mapped)
            continue;
        CUdeviceptr base = region->at, mark = flags;
        unsigned long long chunk = chunk_bytes, total = region->bytes;
        void *arguments[] = {&base, &chunk, &total, &mark};
        if (!fits(region, chunk_bytes) || cuda.launch_kernel(kernel, (unsigned)region->chunk_count, 1, 1, THREADS, 1, 1,
                                                             0, NULL, arguments, NULL) != CUDA_SUCCESS)
            return false;
        flags += region->chunk_count;
    }
    return true;
}

bool zeros_mark(int device, size_t chunk_bytes) {
    size_t count = 0;
    for (size_t i = 0; i < regions.count; i++)
        if (regions.sorted[i]->device == device && regions.sorted[i]->mapped)
            count += regions.sorted[i]->chunk_count;
    if (count == 0)
        return true;
    unsigned char *seen = malloc(count);
    CUdeviceptr flags = 0;
    CUfunction kernel = kernel_of(device);
    bool told = seen != NULL && kernel != NULL &&
                cuda.mem_alloc(&flags, count) == CUDA_SUCCESS && cuda.memset_d8(flags, 0, count) == CUDA_SUCCESS &&
                launch(kernel, device, chunk_bytes, flags) && cuda.memcpy_dtoh(seen, flags, count) == CUDA_SUCCESS;
    if (flags)
        cuda.mem_free(flags);
    const unsigned char *next = seen;
    for (size_t i = 0; told && i < regions.count; i++) {
        struct region *region = regions.sorted[i];
        if (region->device != device || !region->mapped)
            continue;
        for (size_t chunk = 0; chunk < region->chunk_count; chunk++)
            if (!next[chunk])
                region->chunks[chunk].at = CHUNK_ZERO;
        next += region->chunk_count;
    }
    free(seen);
    return told;
}
