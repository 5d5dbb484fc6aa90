// A filter of one byte a row, as bits: what a scan skips 64 rows at a time, and a walk keeps in the nearest cache.

#include <cstring>

#include "dot_i8.h"

namespace {

constexpr uint64_t WORD = 64;

// Bit i is 1 where bytes[i] is not 0, for i < count <= 64.
uint64_t word_portable(const uint8_t* bytes, uint64_t count) {
    constexpr uint64_t low = 0x7f7f7f7f7f7f7f7f;
    uint64_t bits = 0;
    for (uint64_t i = 0; i < count; i += 8) {
        uint64_t eight = 0;
        std::memcpy(&eight, bytes + i, std::min<uint64_t>(8, count - i));
        // the high bit of each byte that is not 0, then these eight side by side
        const uint64_t high = (((eight & low) + low) | eight) & ~low;
        bits |= (((high >> 7) * 0x0102040810204080) >> 56) << i;
    }
    return bits;
}

// Writes the words of whole 64 bytes; returns how many bits are 1.
using Words = uint64_t (*)(const uint8_t* bytes, uint64_t words, uint64_t* out);

uint64_t words_portable(const uint8_t* bytes, uint64_t words, uint64_t* out) {
    uint64_t ones = 0;
    for (uint64_t i = 0; i < words; i++) {
        out[i] = word_portable(bytes + i * WORD, WORD);
        ones += uint64_t(__builtin_popcountll(out[i]));
    }
    return ones;
}

#if defined(__x86_64__)

__attribute__((target("avx2,popcnt"))) uint64_t words_avx2(const uint8_t* bytes, uint64_t words, uint64_t* out) {
    const __m256i zero = _mm256_setzero_si256();
    uint64_t ones = 0;
    for (uint64_t i = 0; i < words; i++) {
        const auto* at = reinterpret_cast<const __m256i*>(bytes + i * WORD);
        const auto low = uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(at), zero)));
        const auto high = uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(at + 1), zero)));
        out[i] = ~(uint64_t(high) << 32 | low);
        ones += uint64_t(__builtin_popcountll(out[i]));
    }
    return ones;
}

__attribute__((target("avx512bw,popcnt"))) uint64_t words_avx512(const uint8_t* bytes, uint64_t words, uint64_t* out) {
    uint64_t ones = 0;
    for (uint64_t i = 0; i < words; i++) {
        const __m512i some = _mm512_loadu_si512(bytes + i * WORD);
        out[i] = _mm512_test_epi8_mask(some, some);
        ones += uint64_t(__builtin_popcountll(out[i]));
    }
    return ones;
}

#elif defined(__aarch64__)

uint64_t words_neon(const uint8_t* bytes, uint64_t words, uint64_t* out) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    uint64_t ones = 0;
    for (uint64_t i = 0; i < words; i++) {
        uint8x16_t part[4];
        for (size_t p = 0; p < 4; p++) {
            const uint8x16_t some = vld1q_u8(bytes + i * WORD + 16 * p);
            part[p] = vandq_u8(vtstq_u8(some, some), bit);
        }
        const uint8x16_t sums = vpaddq_u8(vpaddq_u8(part[0], part[1]), vpaddq_u8(part[2], part[3]));
        out[i] = vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)), 0);
        ones += uint64_t(__builtin_popcountll(out[i]));
    }
    return ones;
}

#endif

Words choose(int32_t path) {
    if (i8::choose(path) == nullptr) return nullptr;
#if defined(__x86_64__)
    if (path == i8::VNNI || (path == i8::BEST && i8::choose(i8::VNNI) != nullptr)) return words_avx512;
    if (path == i8::AVX2 || (path == i8::BEST && i8::choose(i8::AVX2) != nullptr)) return words_avx2;
#elif defined(__aarch64__)
    if (path != i8::PORTABLE) return words_neon;
#endif
    return words_portable;
}

}  // namespace

extern "C" {

// Bit row % 64 of out[row / 64] is 1 where allowed[row] is not 0, and 0 from `rows` on; returns how many are 1.
//
// out: room for one word for each 64 rows begun. path: of i8::Path; -1 where this machine has not that path.
__attribute__((visibility("default"))) int64_t allowed_bits(const uint8_t* allowed, uint64_t rows, uint64_t* out,
                                                            int32_t path) {
    const Words words = choose(path);
    if (words == nullptr) return -1;
    const uint64_t whole = rows / WORD, rest = rows % WORD;
    uint64_t ones = words(allowed, whole, out);
    if (rest != 0) {
        out[whole] = word_portable(allowed + whole * WORD, rest);
        ones += uint64_t(__builtin_popcountll(out[whole]));
    }
    return int64_t(ones);
}

}
