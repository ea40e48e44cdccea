/* CRC32C: three lanes at once where the processor has an instruction for it, a table elsewhere.
 *
 * The instruction takes 3 cycles and can start each cycle, so one lane uses a third of it. The checksums of three lanes
 * are joined by shifting the first over the length of the next, which is a multiplication by a fixed power of x modulo
 * the polynomial: four tables of 256 entries for the one length that we use (V. Gopal et al., "Fast CRC Computation for
 * iSCSI Polynomial Using CRC32 Instruction", Intel 2011).
 */
#include "crc32c.h"

#include <pthread.h>
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
#define LANE 4096              /* bytes */

static uint32_t byte_table[256];
static uint32_t lane_table[4][256]; /* what a checksum becomes behind LANE zero bytes, by its bytes */
static uint32_t (*best)(uint32_t, const unsigned char *, size_t);
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

HARDWARE static uint32_t in_hardware(uint32_t crc, const unsigned char *data, size_t bytes) {
    uint64_t first = crc;
    for (; bytes >= 3 * LANE; bytes -= 3 * LANE, data += 3 * LANE) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            first = STEP8(first, word_at(data + i));
            second = STEP8(second, word_at(data + LANE + i));
            third = STEP8(third, word_at(data + 2 * LANE + i));
        }
        first = shifted((uint32_t)first) ^ (uint32_t)second;
        first = shifted((uint32_t)first) ^ (uint32_t)third;
    }
    for (; bytes >= 8; bytes -= 8, data += 8)
        first = STEP8(first, word_at(data));
    while (bytes--)
        first = STEP1(first, *data++);
    return (uint32_t)first;
}
#endif

static void prepare(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? (crc >> 1) ^ POLYNOMIAL : crc >> 1;
        byte_table[value] = crc;
    }
    best = in_software;
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
    if (has_hardware())
        best = in_hardware;
#endif
}

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&once, prepare);
    return ~best(~crc, data, bytes);
}
