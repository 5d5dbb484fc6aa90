// Scores again, from float16 rows, what a search over int8 found.
//
// Every path adds in the same order, 16 partial sums and then a tree, and rounds each product: the same bits everywhere.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "dot_i8.h"

namespace {

constexpr size_t LANES = 16;

using Score = float (*)(const uint16_t* row, const float* query, size_t dim);

float to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
    uint32_t bits;
    float value;
    if (magnitude >= 0x7c00) {
        bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
    } else if (magnitude >= 0x400) {
        bits = (magnitude << 13) + (112U << 23);
    } else {
        value = float(magnitude) * 0x1p-24F;  // subnormal: exact
        std::memcpy(&bits, &value, 4);
    }
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}

uint16_t half_at(const uint16_t* row, size_t d) {
    uint16_t half;
    std::memcpy(&half, row + d, 2);  // a row may begin at an odd address
    return half;
}

float finish(float (&sums)[LANES], const uint16_t* row, const float* query, size_t from, size_t dim) {
    for (size_t d = from; d < dim; d++) sums[d - from] += to_float(half_at(row, d)) * query[d];
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t i = 0; i < width; i++) sums[i] += sums[i + width];
    return sums[0];
}

float score_portable(const uint16_t* row, const float* query, size_t dim) {
    float sums[LANES] = {};
    size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        for (size_t i = 0; i < LANES; i++) sums[i] += to_float(half_at(row, d + i)) * query[d + i];
    return finish(sums, row, query, d, dim);
}

#if defined(__x86_64__)

__attribute__((target("avx,f16c"))) float score_avx(const uint16_t* row, const float* query, size_t dim) {
    __m256 low = _mm256_setzero_ps(), high = low;
    size_t d = 0;
    for (; d + LANES <= dim; d += LANES) {
        const __m256 a = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + d)));
        const __m256 b = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + d + 8)));
        low = _mm256_add_ps(low, _mm256_mul_ps(a, _mm256_loadu_ps(query + d)));
        high = _mm256_add_ps(high, _mm256_mul_ps(b, _mm256_loadu_ps(query + d + 8)));
    }
    float sums[LANES];
    _mm256_storeu_ps(sums, low);
    _mm256_storeu_ps(sums + 8, high);
    return finish(sums, row, query, d, dim);
}

#elif defined(__aarch64__)

float score_neon(const uint16_t* row, const float* query, size_t dim) {
    float32x4_t part[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    size_t d = 0;
    for (; d + LANES <= dim; d += LANES)
        for (size_t i = 0; i < 4; i++) {
            const uint8x8_t bytes = vld1_u8(reinterpret_cast<const uint8_t*>(row + d + 4 * i));
            const float32x4_t a = vcvt_f32_f16(vreinterpret_f16_u8(bytes));
            part[i] = vaddq_f32(part[i], vmulq_f32(a, vld1q_f32(query + d + 4 * i)));
        }
    float sums[LANES];
    for (size_t i = 0; i < 4; i++) vst1q_f32(sums + 4 * i, part[i]);
    return finish(sums, row, query, d, dim);
}

#endif

Score choose(int32_t path) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && path != i8::PORTABLE) return score_avx;
#elif defined(__aarch64__)
    if (path != i8::PORTABLE) return score_neon;
#endif
    return path <= i8::PORTABLE ? score_portable : nullptr;
}

}  // namespace

extern "C" {

// The best `keep` of the given rows by dot(row, query), best first, equal scores by row.
//
// rows: their numbers [count]; halves: float16 [count, dim], of any alignment; query: float32 [dim]. What is no number
// comes last. Writes at most `keep` rows and scores; returns how many, or -1 where this machine has not that path. Safe
// from many threads; out_rows may be rows.
__attribute__((visibility("default"))) int64_t rescore_f16(const uint32_t* rows, const uint16_t* halves, uint64_t count,
                                                           uint64_t dim, const float* query, uint64_t keep,
                                                           uint32_t* out_rows, float* out_scores, int32_t path) {
    const Score score = choose(path);
    if (score == nullptr) return -1;
    std::vector<i8::Hit> hits(count);
    for (uint64_t i = 0; i < count; i++) {
        const float found = score(halves + i * dim, query, dim);
        hits[i] = {found == found ? found : -std::numeric_limits<float>::infinity(), rows[i]};
    }
    keep = std::min(keep, count);
    std::partial_sort(hits.begin(), hits.begin() + std::ptrdiff_t(keep), hits.end(), i8::better);
    for (uint64_t i = 0; i < keep; i++) {
        out_rows[i] = hits[i].row;
        out_scores[i] = hits[i].score;
    }
    return int64_t(keep);
}

}
