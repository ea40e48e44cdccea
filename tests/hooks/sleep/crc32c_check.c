/* The library's checksum against known values and against the definition, a bit at a time. Prints what differs. */
#include <stdio.h>

#include "crc32c.c"

static uint32_t by_definition(const unsigned char *data, size_t bytes) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
    }
    return ~crc;
}

static int differs(const char *what, size_t at, uint32_t is, uint32_t wanted) {
    if (is != wanted) printf("%s (%zu): %08x, not %08x\n", what, at, is, wanted);
    return is != wanted;
}

int main(void) {
    static unsigned char data[8 * LANE], zeros[32];
    uint32_t state = 1;
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)((state = state * 1664525u + 1013904223u) >> 24);
    int wrong = differs("123456789", 9, crc32c(0, "123456789", 9), 0xE3069283u); /* RFC 3720's polynomial, the usual check */
    wrong += differs("32 zero bytes", 32, crc32c(0, zeros, 32), 0x8A9136AAu);    /* RFC 3720, B.4 */
    static const size_t lengths[] = {0,  1, 7, 8, 9, 63, LANE, 3 * LANE - 1, 3 * LANE, 3 * LANE + 5, 6 * LANE, 7 * LANE + 13};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (size_t skew = 0; skew < 3; skew++) {
            const unsigned char *from = data + skew;
            size_t bytes = lengths[i];
            uint32_t wanted = by_definition(from, bytes);
            wrong += differs("in one", bytes, crc32c(0, from, bytes), wanted);
            wrong += differs("in two", bytes, crc32c(crc32c(0, from, bytes / 3), from + bytes / 3, bytes - bytes / 3), wanted);
            wrong += differs("in software", bytes, ~in_software(~0u, from, bytes), wanted);
        }
    return wrong != 0;
}
