// The types of weights that product_avx512_vnni.cpp multiplies. Each says how 32 channels of one of its blocks are
// unpacked: codes from 0 on in bytes, four elements of a channel together, and the scales. Layouts: ggml's ggml-common.h
// and ggml-cpu/repack.h.
//
// BLOCK: elements for which activations share a scale. PART: elements that share a weight's. ZERO: the code of 0. REPACKED:
// eight channels interleaved. MINS: something is taken off by parts, too.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace paged {

namespace {

using Quads = uint8_t[32][4];  // one step: four elements of 32 channels

// Lines of 64 bytes, of channels 0 to 7 and 8 to 15 with 8 bytes of each, to the first and the second four of each channel.
inline void spread(const uint8_t * low, const uint8_t * high, __m512i quads[2]) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i a = _mm512_loadu_si512(low), b = _mm512_loadu_si512(high);
    quads[0] = _mm512_permutex2var_epi32(a, even, b);
    quads[1] = _mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
}

inline __m512i low_nibbles(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i bytes) { return low_nibbles(_mm512_srli_epi16(bytes, 4)); }

// 32 bytes of channel c and of channel c + 8.
inline __m512i pair(const uint8_t * low, const uint8_t * high) {
    return _mm512_inserti32x8(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *) low)), _mm256_loadu_si256((const __m256i *) high), 1);
}

// From eight such pairs of 32 elements to eight steps of 16 channels.
inline void transpose(const __m512i pairs[8], __m512i steps[8]) {
    __m512i twos[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        twos[i] = _mm512_unpacklo_epi32(pairs[i], pairs[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(pairs[i], pairs[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            fours[i + 2 * k] = _mm512_unpacklo_epi64(twos[i + k], twos[i + k + 2]);
            fours[i + 2 * k + 1] = _mm512_unpackhi_epi64(twos[i + k], twos[i + k + 2]);
        }
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), second = _mm512_add_epi64(first, _mm512_set1_epi64(2));
    for (int i = 0; i < 4; i++) {
        steps[i] = _mm512_permutex2var_epi64(fours[i], first, fours[i + 4]);
        steps[i + 4] = _mm512_permutex2var_epi64(fours[i], second, fours[i + 4]);
    }
}

inline __m256 from_halves(const uint16_t * halves) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) halves)); }

// The halves, in the upper or lower two of four bytes, of 16 channels.
inline __m512 gather_halves(const void * at, int channel_bytes, int shift) {
    const __m512i channels = _mm512_mullo_epi32(_mm512_set1_epi32(channel_bytes), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m512i four = _mm512_i32gather_epi32(channels, at, 1);
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srl_epi32(four, _mm_cvtsi32_si128(shift))));
}

struct Q4_0 {
    static constexpr int BLOCK = 32, PART = 32, ZERO = 8;
    static constexpr bool REPACKED = true, MINS = false;
    struct Eight {  // block_q4_0x8
        uint16_t scales[8];
        uint8_t codes[2][64];  // 8 bytes of each channel: elements 8h to 8h + 7, and 16 more in the high nibbles, from -8
    };
    struct alignas(64) Block {
        Quads codes[8];
        float scales[32];
    };

    static void unpack(const char * weights, int blocks, int block, Block & to) {
        for (int half = 0; half < 2; half++) {
            const Eight & low = ((const Eight *) weights)[size_t(2 * half) * blocks + block];
            const Eight & high = ((const Eight *) weights)[size_t(2 * half + 1) * blocks + block];
            const __m512i sign = _mm512_set1_epi8(8);
            for (int h = 0; h < 2; h++) {
                __m512i quads[2];
                spread(low.codes[h], high.codes[h], quads);
                for (int i = 0; i < 2; i++) {
                    _mm512_store_si512(to.codes[2 * h + i][16 * half], _mm512_xor_si512(low_nibbles(quads[i]), sign));
                    _mm512_store_si512(to.codes[2 * h + i + 4][16 * half], _mm512_xor_si512(high_nibbles(quads[i]), sign));
                }
            }
            _mm256_store_ps(to.scales + 16 * half, from_halves(low.scales));
            _mm256_store_ps(to.scales + 16 * half + 8, from_halves(high.scales));
        }
    }
};

struct Q4_K {
    static constexpr int BLOCK = 256, PART = 32, ZERO = 0;
    static constexpr bool REPACKED = true, MINS = true;
    struct Eight {  // block_q4_Kx8
        uint16_t scales[8], min_scales[8];
        uint8_t parts[8][12];   // scales and mins of 6 bits
        uint8_t codes[16][64];  // 8 bytes of each channel: elements 64j + 8h to 8h + 7, and 32 more in the high nibbles
    };
    struct alignas(64) Block {
        Quads codes[64];
        float scales[32], min_scales[32];
        int32_t part_scales[8][32];
        int16_t mins[4][32][2];  // of two parts
    };

    static void unpack(const char * weights, int blocks, int block, Block & to) {
        for (int half = 0; half < 2; half++) {
            const Eight & low = ((const Eight *) weights)[size_t(2 * half) * blocks + block];
            const Eight & high = ((const Eight *) weights)[size_t(2 * half + 1) * blocks + block];
            for (int h = 0; h < 16; h++) {
                __m512i quads[2];
                spread(low.codes[h], high.codes[h], quads);
                for (int i = 0; i < 2; i++) {
                    const int step = 16 * (h / 4) + 2 * (h % 4) + i;
                    _mm512_store_si512(to.codes[step][16 * half], low_nibbles(quads[i]));
                    _mm512_store_si512(to.codes[step + 8][16 * half], high_nibbles(quads[i]));
                }
            }
            unpack_scales(low, 16 * half, to), unpack_scales(high, 16 * half + 8, to);
        }
    }

    static void unpack_scales(const Eight & from, int channel, Block & to) {
        _mm256_store_ps(to.scales + channel, from_halves(from.scales));
        _mm256_store_ps(to.min_scales + channel, from_halves(from.min_scales));
        for (int p = 0; p < 8; p += 2) {
            uint64_t scales[2], mins[2];
            for (int i = 0; i < 2; i++) {
                uint32_t a, b, c;
                std::memcpy(&a, from.parts[p + i], 4), std::memcpy(&b, from.parts[p + i] + 4, 4), std::memcpy(&c, from.parts[p + i] + 8, 4);
                scales[i] = (a & 0x3f3f3f3f) | uint64_t((c & 0x0f0f0f0f) | ((a >> 6 & 0x03030303) << 4)) << 32;
                mins[i] = (b & 0x3f3f3f3f) | uint64_t((c >> 4 & 0x0f0f0f0f) | ((b >> 6 & 0x03030303) << 4)) << 32;
                _mm256_store_si256((__m256i *) &to.part_scales[p + i][channel], _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scales[i])));
            }
            const __m128i both = _mm_unpacklo_epi8(_mm_cvtsi64_si128(mins[0]), _mm_cvtsi64_si128(mins[1]));
            _mm256_store_si256((__m256i *) to.mins[p / 2][channel], _mm256_cvtepu8_epi16(both));
        }
    }
};

struct Q6_K {
    static constexpr int BLOCK = 256, PART = 16, ZERO = 32;
    static constexpr bool REPACKED = false, MINS = false;
    struct One {  // block_q6_K
        uint8_t low[2][64], high[2][32];
        int8_t parts[16];
        uint16_t scale;
    };
    struct alignas(64) Block {
        Quads codes[64];
        float scales[32];
        int32_t part_scales[16][32];
    };

    static void unpack(const char * weights, int blocks, int block, Block & to) {
        for (int half = 0; half < 2; half++) {
            const One * from = (const One *) weights + size_t(16 * half) * blocks + block;
            for (int h = 0; h < 2; h++) unpack_codes(from, blocks, h, half, to);
            __m512i pairs[8], fours[8];
            for (int c = 0; c < 8; c++) {
                const One *low = from + size_t(c) * blocks, *high = low + size_t(8) * blocks;
                pairs[c] = _mm512_inserti32x8(_mm512_castsi128_si512(_mm_loadu_si128((const __m128i *) low->parts)),
                                              _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *) high->parts)), 1);
            }
            transpose(pairs, fours);
            for (int p = 0; p < 16; p++) {
                const __m512i top = _mm512_sll_epi32(fours[p / 4], _mm_cvtsi32_si128(24 - 8 * (p % 4)));
                _mm512_store_si512(&to.part_scales[p][16 * half], _mm512_srai_epi32(top, 24));
            }
            // read with the two bytes before it: those after it may not be there
            _mm512_store_ps(to.scales + 16 * half, gather_halves((const char *) &from->scale - 2, blocks * int(sizeof(One)), 16));
        }
    }

    // 128 elements of 16 channels.
    static void unpack_codes(const One * from, int blocks, int h, int half, Block & to) {
        const __m512i top = _mm512_set1_epi8(0x30);
        __m512i pairs[4][8], steps[8];
        for (int c = 0; c < 8; c++) {
            const One &low = from[size_t(c) * blocks], &high = from[size_t(c + 8) * blocks];
            const __m512i a = pair(low.low[h], high.low[h]), b = pair(low.low[h] + 32, high.low[h] + 32), two = pair(low.high[h], high.high[h]);
            pairs[0][c] = _mm512_or_si512(low_nibbles(a), _mm512_and_si512(_mm512_slli_epi16(two, 4), top));
            pairs[1][c] = _mm512_or_si512(low_nibbles(b), _mm512_and_si512(_mm512_slli_epi16(two, 2), top));
            pairs[2][c] = _mm512_or_si512(high_nibbles(a), _mm512_and_si512(two, top));
            pairs[3][c] = _mm512_or_si512(high_nibbles(b), _mm512_and_si512(_mm512_srli_epi16(two, 2), top));
        }
        for (int quarter = 0; quarter < 4; quarter++) {
            transpose(pairs[quarter], steps);
            for (int s = 0; s < 8; s++) _mm512_store_si512(to.codes[32 * h + 8 * quarter + s][16 * half], steps[s]);
        }
    }
};

struct Q8_0 {
    static constexpr int BLOCK = 32, PART = 32, ZERO = 128;
    static constexpr bool REPACKED = false, MINS = false;
    struct One {  // block_q8_0
        uint16_t scale;
        uint8_t codes[32];
    };
    struct alignas(64) Block {
        Quads codes[8];
        float scales[32];
    };

    static void unpack(const char * weights, int blocks, int block, Block & to) {
        for (int half = 0; half < 2; half++) {
            const One * from = (const One *) weights + size_t(16 * half) * blocks + block;
            __m512i pairs[8], steps[8];
            for (int c = 0; c < 8; c++) pairs[c] = pair(from[size_t(c) * blocks].codes, from[size_t(c + 8) * blocks].codes);
            transpose(pairs, steps);
            for (int s = 0; s < 8; s++)
                _mm512_store_si512(to.codes[s][16 * half], _mm512_xor_si512(steps[s], _mm512_set1_epi8(-128)));
            _mm512_store_ps(to.scales + 16 * half, gather_halves(from, blocks * int(sizeof(One)), 0));
        }
    }
};

}  // namespace

}  // namespace paged
