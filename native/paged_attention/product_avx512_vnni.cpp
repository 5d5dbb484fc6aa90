// VPDPBUSD: 64 products of unsigned and signed bytes an instruction, added into 16 sums.
#include "product.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace paged {

namespace {

constexpr int ROWS = 6;                      // of a tile: with 32 channels 24 accumulators of 32 registers
constexpr int BLOCK_BYTES = 16 + 128;        // ggml's block_q4_0x8: 8 scales in f16, 8 x 32 codes of 4 bits
constexpr int STEPS = PRODUCT_BLOCK / 4;     // four elements a step

// One strip of 32 channels, unpacked: codes [depth / 32][STEPS][32 channels][4 elements] from 0 to 15, scales [depth / 32][32].
struct Strip {
    std::vector<uint8_t> codes;
    std::vector<float> scales;

    void take(const char * weights, int depth) {
        const int blocks = depth / PRODUCT_BLOCK;
        codes.resize(size_t(blocks) * STEPS * 128), scales.resize(size_t(blocks) * PRODUCT_CHANNELS);
        for (int half = 0; half < 2; half++) {
            const char * low = weights + size_t(2 * half) * blocks * BLOCK_BYTES;
            const char * high = low + size_t(blocks) * BLOCK_BYTES;
            for (int b = 0; b < blocks; b++, low += BLOCK_BYTES, high += BLOCK_BYTES) unpack(low, high, b, half);
        }
    }

private:
    // Sixteen channels of one block. A chunk of 64 bytes has 8 bytes of each of 8 channels: elements 8h to 8h + 7 in the
    // low nibbles, 16 more in the high ones, as two's complement.
    void unpack(const char * low, const char * high, int block, int half) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        const __m512i nibble = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(8);
        uint8_t * to = codes.data() + size_t(block) * STEPS * 128 + 64 * half;
        for (int h = 0; h < 2; h++) {
            const __m512i a = _mm512_loadu_si512(low + 16 + 64 * h), b = _mm512_loadu_si512(high + 16 + 64 * h);
            const __m512i quads[2] = {_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b)};
            for (int i = 0; i < 2; i++) {
                const __m512i first = _mm512_and_si512(quads[i], nibble);
                const __m512i second = _mm512_and_si512(_mm512_srli_epi16(quads[i], 4), nibble);
                _mm512_storeu_si512(to + (2 * h + i) * 128, _mm512_xor_si512(first, sign));
                _mm512_storeu_si512(to + (2 * h + i + 4) * 128, _mm512_xor_si512(second, sign));
            }
        }
        float * scale = scales.data() + size_t(block) * PRODUCT_CHANNELS + 16 * half;
        _mm256_storeu_ps(scale, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) low)));
        _mm256_storeu_ps(scale + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) high)));
    }
};

// A row to int8 by blocks, as ggml's quantize_row_q8_0.
void round_row(const float * from, int depth, int8_t * codes, float * scales, int32_t * offsets) {
    for (int b = 0; b < depth / PRODUCT_BLOCK; b++, from += PRODUCT_BLOCK, codes += PRODUCT_BLOCK) {
        const __m512 x = _mm512_loadu_ps(from), y = _mm512_loadu_ps(from + 16);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x), _mm512_abs_ps(y)));
        const __m512 back = _mm512_set1_ps(most > 0 ? 127.0f / most : 0.0f);
        const __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(x, back)), q = _mm512_cvtps_epi32(_mm512_mul_ps(y, back));
        _mm_storeu_si128((__m128i *) codes, _mm512_cvtepi32_epi8(p));
        _mm_storeu_si128((__m128i *) (codes + 16), _mm512_cvtepi32_epi8(q));
        scales[b] = _cvtsh_ss(_cvtss_sh(most / 127.0f, 0));
        offsets[b] = -8 * _mm512_reduce_add_epi32(_mm512_add_epi32(p, q));
    }
}

// As assembly, because GCC 12 moves and spills the accumulators of the intrinsic.
inline void multiply_add(__m512i & sum, __m512i weights, __m512i activations) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(activations));
}

// R rows x 32 channels.
template <int R> __attribute__((noinline)) void tile(const Strip & strip, const ProductScratch & s, int row, int depth, float * out, size_t out_row) {
    const int blocks = depth / PRODUCT_BLOCK;
    __m512 total[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) total[r][0] = total[r][1] = _mm512_setzero_ps();
    const int8_t * codes = s.codes.data() + size_t(row) * depth;
    const float * scales = s.scales.data() + size_t(row) * blocks;
    const int32_t * offsets = s.offsets.data() + size_t(row) * blocks;
    const uint8_t * weights = strip.codes.data();
    for (int b = 0; b < blocks; b++) {
        __m512i sum[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_set1_epi32(offsets[size_t(r) * blocks + b]);
#pragma GCC unroll 8
        for (int step = 0; step < STEPS; step++, weights += 128) {
            const __m512i first = _mm512_loadu_si512(weights), second = _mm512_loadu_si512(weights + 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int32_t four;
                std::memcpy(&four, codes + size_t(r) * depth + b * PRODUCT_BLOCK + 4 * step, 4);
                const __m512i activations = _mm512_set1_epi32(four);
                multiply_add(sum[r][0], first, activations);
                multiply_add(sum[r][1], second, activations);
            }
        }
        const __m512 first = _mm512_loadu_ps(&strip.scales[size_t(b) * 32]), second = _mm512_loadu_ps(&strip.scales[size_t(b) * 32 + 16]);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512 scale = _mm512_set1_ps(scales[size_t(r) * blocks + b]);
            total[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][0]), _mm512_mul_ps(first, scale), total[r][0]);
            total[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][1]), _mm512_mul_ps(second, scale), total[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        float * to = (float *) ((char *) out + r * out_row);
        _mm512_storeu_ps(to, total[r][0]), _mm512_storeu_ps(to + 16, total[r][1]);
    }
}

}  // namespace

void multiply(const Product & p, int threads, ProductScratch & s) {
    const int blocks = p.depth / PRODUCT_BLOCK;
    s.codes.resize(size_t(p.rows) * p.depth), s.scales.resize(size_t(p.rows) * blocks), s.offsets.resize(size_t(p.rows) * blocks);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int row = 0; row < p.rows; row++)
            round_row((const float *) (p.activations + row * p.activation_row), p.depth, &s.codes[size_t(row) * p.depth],
                      &s.scales[size_t(row) * blocks], &s.offsets[size_t(row) * blocks]);
        Strip strip;
#pragma omp for schedule(dynamic, 1)
        for (int channel = 0; channel < p.channels; channel += PRODUCT_CHANNELS) {
            strip.take(p.weights + size_t(channel / 8) * blocks * BLOCK_BYTES, p.depth);
            int row = 0;
            float * out = (float *) p.out + channel;
            const auto at = [&](int r) { return (float *) ((char *) out + r * p.out_row); };
            for (; row + ROWS <= p.rows; row += ROWS) tile<ROWS>(strip, s, row, p.depth, at(row), p.out_row);
            for (; row + 2 <= p.rows; row += 2) tile<2>(strip, s, row, p.depth, at(row), p.out_row);
            for (; row < p.rows; row++) tile<1>(strip, s, row, p.depth, at(row), p.out_row);
        }
    }
}

}  // namespace paged
