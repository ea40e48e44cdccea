/* How much GPU memory this process has, by the driver's own account. */
#ifndef WARMBOOT_NVML_H
#define WARMBOOT_NVML_H

#include <stdbool.h>
#include <stdint.h>

/* False: it cannot be told, because there is no NVML, or it knows this process by another number (a container). */
bool nvml_process_bytes(int device, uint64_t *bytes);

#endif
