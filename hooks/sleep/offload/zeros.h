/* Chunks that are all zeros, found by the GPU itself: KV caches mostly are, and need neither be copied nor kept. */
#ifndef WARMBOOT_ZEROS_H
#define WARMBOOT_ZEROS_H

#include <stdbool.h>
#include <stddef.h>

#include "regions.h"

/* Mark every chunk of the device's mapped regions that is all zeros with CHUNK_ZERO, in the current context.
 * False: the GPU cannot tell (no compiler in the driver, no memory for the marks); nothing is marked then. */
bool zeros_mark(int device, size_t chunk_bytes);

#endif
