/* CRC32C (Castagnoli), as iSCSI has it: RFC 3720, appendix B.4; in hardware on x86 with SSE4.2 and on ARMv8 with CRC. */
#ifndef WARMBOOT_CRC32C_H
#define WARMBOOT_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continue the checksum `crc` (0 for a new one) over `bytes` bytes. */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);

/* Copy `bytes` bytes and return the checksum of what was read. */
uint32_t crc32c_copy(void *to, const void *from, size_t bytes);

#endif
