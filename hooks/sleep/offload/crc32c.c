/* CRC32C: four lanes at once where the processor has an instruction for it, a table elsewhere.
 *
 * The instruction takes 3 cycles and can start each cycle, so one lane uses a third of it. The checksums of the lanes are
 * joined by shifting the first over the length of the next, which is a multiplication by a fixed power of x modulo the
 * polynomial: four tables of 256 entries for the one length that we use (V. Gopal et al., "Fast CRC Computation for iSCSI
 * Polynomial Using CRC32 Instruction", Intel 2011).
 *
 * Copied in the same loop, the checksum hides behind the memory that the copy waits for: both together take no longer
 * than a memcpy alone (seen; memcpy and then a checksum of each 32 KiB take twice as long).
 */
#include "crc32c.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define HARDWARE __attribute__((target("sse4.2")))
#define STEP8(crc, word) _mm_crc32_u64((crc), (word))
#define STEP1(crc, byte) _mm_crc32_u8((uint32_t)(crc), (byte))
static int has_hardware(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define HARDWARE __attribute__((target("+crc")))
#define STEP8(crc, word) __crc32cd((uint32_t)(crc), (word))
#define STEP1(crc, byte) __crc32cb((uint32_t)(crc), (byte))
static int has_hardware(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#endif

#define POLYNOMIAL 0x82f63b78u /* bit-reflected */
#define LANE ((size_t)16 << 10) /* bytes; four of them divide every chunk but an odd region's last */
#define AHEAD 1024              /* bytes that are fetched before they are needed */

static uint32_t byte_table[256];
static uint32_t lane_table[4][256]; /* what a checksum becomes behind LANE zero bytes, by its bytes */
static bool in_hardware;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint32_t in_software(uint32_t crc, const unsigned char *data, size_t bytes) {
    while (bytes--)
        crc = byte_table[(crc ^ *data++) & 0xff] ^ (crc >> 8);
    return crc;
}

#ifdef HARDWARE
static uint64_t word_at(const unsigned char *data) {
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

static uint32_t shifted(uint32_t crc) {
    return lane_table[0][crc & 0xff] ^ lane_table[1][(crc >> 8) & 0xff] ^ lane_table[2][(crc >> 16) & 0xff] ^
           lane_table[3][crc >> 24];
}

HARDWARE static inline __attribute__((always_inline)) uint64_t step(uint64_t crc, unsigned char *to,
                                                                    const unsigned char *from, bool copies) {
    uint64_t word = word_at(from);
    if (copies)
        memcpy(to, &word, sizeof word);
    return STEP8(crc, word);
}

/* The compiler makes one function of each `copies`. */
HARDWARE static inline __attribute__((always_inline)) uint32_t lanes(uint32_t crc, unsigned char *to,
                                                                     const unsigned char *from, size_t bytes,
                                                                     bool copies) {
    uint64_t first = crc;
    for (; bytes >= 4 * LANE; bytes -= 4 * LANE, from += 4 * LANE, to += copies ? 4 * LANE : 0) {
        uint64_t second = 0, third = 0, fourth = 0;
        for (size_t line = 0; line < LANE; line += 64) {
            for (size_t lane = 0; lane < 4; lane++)
                __builtin_prefetch(from + lane * LANE + line + AHEAD);
#pragma GCC unroll 8
            for (size_t i = line; i < line + 64; i += 8) {
                first = step(first, to + i, from + i, copies);
                second = step(second, to + LANE + i, from + LANE + i, copies);
                third = step(third, to + 2 * LANE + i, from + 2 * LANE + i, copies);
                fourth = step(fourth, to + 3 * LANE + i, from + 3 * LANE + i, copies);
            }
        }
        first = shifted((uint32_t)first) ^ (uint32_t)second;
        first = shifted((uint32_t)first) ^ (uint32_t)third;
        first = shifted((uint32_t)first) ^ (uint32_t)fourth;
    }
    for (; bytes >= 8; bytes -= 8, from += 8, to += copies ? 8 : 0)
        first = step(first, to, from, copies);
    for (; bytes; bytes--, from++) {
        first = STEP1(first, *from);
        if (copies)
            *to++ = *from;
    }
    return (uint32_t)first;
}

HARDWARE static uint32_t look(uint32_t crc, const unsigned char *data, size_t bytes) {
    static unsigned char nowhere[4 * LANE]; /* never written */
    return lanes(crc, nowhere, data, bytes, false);
}

HARDWARE static uint32_t copy(unsigned char *to, const unsigned char *from, size_t bytes) {
    return lanes(~0u, to, from, bytes, true);
}
#endif

static void prepare(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? (crc >> 1) ^ POLYNOMIAL : crc >> 1;
        byte_table[value] = crc;
    }
#ifdef HARDWARE
    /* Shifting is linear: the shift of each single bit gives that of any checksum. */
    static const unsigned char zeros[LANE];
    uint32_t of_bit[32];
    for (int bit = 0; bit < 32; bit++)
        of_bit[bit] = in_software(1u << bit, zeros, LANE);
    for (int part = 0; part < 4; part++)
        for (unsigned value = 0; value < 256; value++)
            for (int bit = 0; bit < 8; bit++)
                if (value >> bit & 1)
                    lane_table[part][value] ^= of_bit[8 * part + bit];
    in_hardware = has_hardware();
#endif
}

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&once, prepare);
#ifdef HARDWARE
    if (in_hardware)
        return ~look(~crc, data, bytes);
#endif
    return ~in_software(~crc, data, bytes);
}

uint32_t crc32c_copy(void *to, const void *from, size_t bytes) {
    pthread_once(&once, prepare);
#ifdef HARDWARE
    if (in_hardware)
        return ~copy(to, from, bytes);
#endif
    memcpy(to, from, bytes);
    return ~in_software(~0u, from, bytes);
}
