/* How much memory the host, or our container, has left. */
#ifndef WARMBOOT_HOST_MEMORY_H
#define WARMBOOT_HOST_MEMORY_H

#include <stdint.h>

/* Bytes that can be used before somebody is killed for them; UINT64_MAX: that cannot be told. `root` is "" but in tests. */
uint64_t host_memory_room(const char *root);

#endif
