// Dot products of one int8 query with many int8 rows: AVX-512 VNNI, AVX2, NEON or portable, chosen when it runs.
//
// Every kernel gives the same integers. Rows of a walk lie all over memory, so a kernel takes their numbers; whoever calls
// it has asked for the rows before (`prefetch`), as early as it knew them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace i8 {

// A path by number, as callers name it; BEST is the fastest of this machine.
enum Path : int32_t { BEST = -1, PORTABLE = 0, AVX2 = 1, VNNI = 2, NEON = 3, NEON_DOT = 4 };

// out[i] = sum over d of vectors[rows[i]][d] * query[d], for i < count.
using Dots = void (*)(const int8_t* query, const int8_t* vectors, size_t dim, const uint32_t* rows, size_t count,
                      int32_t* out);

// Into the second level of the cache, which has more lines under way at once than the first: a scan from memory is twice
// as fast so.
inline void prefetch(const int8_t* row, size_t dim) {
    for (size_t i = 0; i < dim; i += 64) __builtin_prefetch(row + i, 0, 2);
}

inline int32_t dot_portable(const int8_t* a, const int8_t* b, size_t dim) {
    int32_t sum = 0;
    for (size_t i = 0; i < dim; i++) sum += int32_t(a[i]) * int32_t(b[i]);
    return sum;
}

inline void dots_portable(const int8_t* query, const int8_t* vectors, size_t dim, const uint32_t* rows, size_t count,
                          int32_t* out) {
    for (size_t i = 0; i < count; i++) out[i] = dot_portable(vectors + rows[i] * dim, query, dim);
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) inline int32_t dot_avx2(const int8_t* a, const int8_t* b, size_t dim) {
    // widened to 16 bits: maddubs would saturate
    __m256i sum = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)));
        const __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
    }
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtsi128_si32(half) + dot_portable(a + i, b + i, dim - i);
}

__attribute__((target("avx2"))) inline void dots_avx2(const int8_t* query, const int8_t* vectors, size_t dim,
                                                      const uint32_t* rows, size_t count, int32_t* out) {
    for (size_t i = 0; i < count; i++) out[i] = dot_avx2(vectors + rows[i] * dim, query, dim);
}

// GCC 12 calls its own _mm512_undefined_epi32 uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// dpbusd multiplies unsigned by signed: row + 128 is unsigned, and what that adds, 128 * sum(query), is the same for
// every row and taken off at the end.
__attribute__((target("avx512f,avx512bw,avx512vnni"))) inline void dots_vnni(const int8_t* query, const int8_t* vectors,
                                                                             size_t dim, const uint32_t* rows,
                                                                             size_t count, int32_t* out) {
    const __m512i flip = _mm512_set1_epi8(char(0x80)), ones = _mm512_set1_epi8(1);
    const size_t whole = dim & ~size_t(63);
    const __mmask64 rest = (__mmask64(1) << (dim - whole)) - 1;
    __m512i query_sums = _mm512_setzero_si512();
    for (size_t d = 0; d < whole; d += 64)
        query_sums = _mm512_dpbusd_epi32(query_sums, ones, _mm512_loadu_si512(query + d));
    if (rest) query_sums = _mm512_dpbusd_epi32(query_sums, ones, _mm512_maskz_loadu_epi8(rest, query + whole));
    const int32_t excess = 128 * _mm512_reduce_add_epi32(query_sums);

    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const int8_t* const x0 = vectors + rows[i] * dim;
        const int8_t* const x1 = vectors + rows[i + 1] * dim;
        const int8_t* const x2 = vectors + rows[i + 2] * dim;
        const int8_t* const x3 = vectors + rows[i + 3] * dim;
        __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
        for (size_t d = 0; d < whole; d += 64) {
            const __m512i q = _mm512_loadu_si512(query + d);
            s0 = _mm512_dpbusd_epi32(s0, _mm512_xor_si512(_mm512_loadu_si512(x0 + d), flip), q);
            s1 = _mm512_dpbusd_epi32(s1, _mm512_xor_si512(_mm512_loadu_si512(x1 + d), flip), q);
            s2 = _mm512_dpbusd_epi32(s2, _mm512_xor_si512(_mm512_loadu_si512(x2 + d), flip), q);
            s3 = _mm512_dpbusd_epi32(s3, _mm512_xor_si512(_mm512_loadu_si512(x3 + d), flip), q);
        }
        if (rest) {
            const __m512i q = _mm512_maskz_loadu_epi8(rest, query + whole);
            s0 = _mm512_dpbusd_epi32(s0, _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, x0 + whole), flip), q);
            s1 = _mm512_dpbusd_epi32(s1, _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, x1 + whole), flip), q);
            s2 = _mm512_dpbusd_epi32(s2, _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, x2 + whole), flip), q);
            s3 = _mm512_dpbusd_epi32(s3, _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, x3 + whole), flip), q);
        }
        // a 4 x 4 transpose within each of four lanes, adding on the way, then the lanes together
        const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(s0, s1), _mm512_unpackhi_epi32(s0, s1));
        const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(s2, s3), _mm512_unpackhi_epi32(s2, s3));
        const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
        const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm_sub_epi32(sums, _mm_set1_epi32(excess)));
    }
    for (; i < count; i++) {
        const int8_t* const x = vectors + rows[i] * dim;
        __m512i s = _mm512_setzero_si512();
        for (size_t d = 0; d < whole; d += 64)
            s = _mm512_dpbusd_epi32(s, _mm512_xor_si512(_mm512_loadu_si512(x + d), flip), _mm512_loadu_si512(query + d));
        if (rest)
            s = _mm512_dpbusd_epi32(s, _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, x + whole), flip),
                                    _mm512_maskz_loadu_epi8(rest, query + whole));
        out[i] = _mm512_reduce_add_epi32(s) - excess;
    }
}
#pragma GCC diagnostic pop

#elif defined(__aarch64__)

inline int32_t dot_neon(const int8_t* a, const int8_t* b, size_t dim) {
    int32x4_t sum = vdupq_n_s32(0);
    size_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        const int8x16_t x = vld1q_s8(a + i), y = vld1q_s8(b + i);
        sum = vpadalq_s16(sum, vmull_s8(vget_low_s8(x), vget_low_s8(y)));
        sum = vpadalq_s16(sum, vmull_high_s8(x, y));
    }
    return vaddvq_s32(sum) + dot_portable(a + i, b + i, dim - i);
}

__attribute__((target("arch=armv8.2-a+dotprod"))) inline int32_t dot_neon_dot(const int8_t* a, const int8_t* b,
                                                                              size_t dim) {
    int32x4_t even = vdupq_n_s32(0), odd = even;
    size_t i = 0;
    for (; i + 32 <= dim; i += 32) {
        even = vdotq_s32(even, vld1q_s8(a + i), vld1q_s8(b + i));
        odd = vdotq_s32(odd, vld1q_s8(a + i + 16), vld1q_s8(b + i + 16));
    }
    return vaddvq_s32(vaddq_s32(even, odd)) + dot_portable(a + i, b + i, dim - i);
}

template <int32_t (*DOT)(const int8_t*, const int8_t*, size_t)>
void dots_of(const int8_t* query, const int8_t* vectors, size_t dim, const uint32_t* rows, size_t count, int32_t* out) {
    for (size_t i = 0; i < count; i++) out[i] = DOT(vectors + rows[i] * dim, query, dim);
}

#endif

// null where this machine has not that path
inline Dots choose(int32_t path) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool vnni = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
    if (vnni && (path == VNNI || path == BEST)) return dots_vnni;
    if (__builtin_cpu_supports("avx2") && (path == AVX2 || path == BEST)) return dots_avx2;
#elif defined(__aarch64__)
    if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (path == NEON_DOT || path == BEST)) return dots_of<dot_neon_dot>;
    if (path == NEON || path == BEST) return dots_of<dot_neon>;
#endif
    return path == PORTABLE || path == BEST ? dots_portable : nullptr;
}

// Codes such that codes * scale is nearest the query; symmetric. False where a value is not finite.
inline bool quantize(const float* query, size_t dim, int8_t* codes, float* scale) {
    float most = 0, poison = 0;
    for (size_t d = 0; d < dim; d++) {
        most = std::max(most, std::fabs(query[d]));
        poison += query[d] * 0.0F;
    }
    if (poison != 0) return false;
    *scale = most / 127.0F;
    const float step = *scale > 0 ? *scale : 1;
    constexpr float whole = 12582912;  // 1.5 * 2^23: what is added to it is rounded, half to even, and needs no call
    for (size_t d = 0; d < dim; d++) {
        const float code = (query[d] / step + whole) - whole;
        codes[d] = int8_t(std::max(-127.0F, std::min(127.0F, code)));  // a subnormal scale is itself rounded
    }
    return true;
}

// What is searched: vectors int8 [rows, dim], scales float32 [rows], finite; graph: bytes that check_graph found sound, or
// null. Callers of the library build it.
struct Rows {
    const int8_t* vectors;
    const float* scales;
    const uint8_t* graph;
    uint64_t rows, dim;
};

struct Hit {
    float score;
    uint32_t row;
};

// Whether a comes before b: a heap by this order keeps the last of the best in front. A type, so that heaps inline it.
struct Better {
    bool operator()(const Hit& a, const Hit& b) const { return a.score > b.score || (a.score == b.score && a.row < b.row); }
};
constexpr Better better{};

// Leaves of hits, best first, those that may be among the k best once they are scored without rounding.
//
// A code is off by up to half a scale, evenly, so that the dot product of two unit vectors is off by about a normal
// deviate of variance (scale a^2 + scale b^2) / 12. Kept is what lies within six deviations behind the k-th.
inline void contenders(std::vector<Hit>& hits, size_t k, const float* scales, float query_scale) {
    if (k == 0) hits.clear();
    if (hits.size() <= k) return;
    const Hit last = hits[k - 1];
    const auto variance = [&](const Hit& hit) {
        const float row = scales[hit.row], kth = scales[last.row];
        return (row * row + kth * kth + 2 * query_scale * query_scale) / 12;
    };
    const auto outside = [&](const Hit& hit) {
        return (last.score - hit.score) * query_scale > 6 * std::sqrt(variance(hit));
    };
    hits.erase(std::remove_if(hits.begin() + std::ptrdiff_t(k), hits.end(), outside), hits.end());
}

// Writes the hits, with scores as they are between row and query.
inline int64_t give(const std::vector<Hit>& hits, float query_scale, uint32_t* out_rows, float* out_scores) {
    for (size_t i = 0; i < hits.size(); i++) {
        out_rows[i] = hits[i].row;
        out_scores[i] = hits[i].score * query_scale;
    }
    return int64_t(hits.size());
}

}  // namespace i8
