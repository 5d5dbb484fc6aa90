// Exact nearest rows by int8 dot product: AVX-512 VNNI, AVX2 or portable, chosen when it runs.
//
// Every path gives the same result: integer dot products, then one float multiplication a row.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Dot = int32_t (*)(const int8_t* a, const int8_t* b, size_t dim);

int32_t dot_portable(const int8_t* a, const int8_t* b, size_t dim) {
    int32_t sum = 0;
    for (size_t i = 0; i < dim; i++) sum += int32_t(a[i]) * int32_t(b[i]);
    return sum;
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) int32_t dot_avx2(const int8_t* a, const int8_t* b, size_t dim) {
    // Widened to 16 bits: maddubs would saturate.
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

// GCC 12 calls its own _mm512_undefined_epi32 uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
// dpbusd multiplies unsigned by signed: a + 128 is unsigned, and what that adds, 128 * sum(b), is taken off again.
__attribute__((target("avx512f,avx512bw,avx512vnni"))) int32_t dot_vnni(const int8_t* a, const int8_t* b, size_t dim) {
    const __m512i flip = _mm512_set1_epi8(char(0x80)), ones = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512(), sum_b = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 64 <= dim; i += 64) {
        const __m512i y = _mm512_loadu_si512(b + i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(_mm512_loadu_si512(a + i), flip), y);
        sum_b = _mm512_dpbusd_epi32(sum_b, ones, y);
    }
    if (i < dim) {
        const __mmask64 in = (__mmask64(1) << (dim - i)) - 1;
        const __m512i y = _mm512_maskz_loadu_epi8(in, b + i);
        sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(_mm512_maskz_loadu_epi8(in, a + i), flip), y);
        sum_b = _mm512_dpbusd_epi32(sum_b, ones, y);
    }
    return _mm512_reduce_add_epi32(_mm512_sub_epi32(sum, _mm512_slli_epi32(sum_b, 7)));
}
#pragma GCC diagnostic pop

#endif

Dot choose_dot() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) return dot_vnni;
    if (__builtin_cpu_supports("avx2")) return dot_avx2;
#endif
    return dot_portable;
}

Dot named_dot(int32_t path) {
#if defined(__x86_64__)
    if (path == 2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) return dot_vnni;
    if (path == 1 && __builtin_cpu_supports("avx2")) return dot_avx2;
#endif
    return path == 0 ? dot_portable : nullptr;
}

struct Hit {
    float score;
    uint32_t row;
};

// Whether a is better: a heap by this order keeps the worst hit in front.
bool better(const Hit& a, const Hit& b) { return a.score > b.score || (a.score == b.score && a.row < b.row); }

void prefetch(const int8_t* row, size_t dim) {
    for (size_t i = 0; i < dim; i += 64) __builtin_prefetch(row + i);
}

}  // namespace

extern "C" {

// The best `keep` rows by scales[row] * dot(vectors[row], query), best first, equal scores by row.
//
// vectors: int8 [rows, dim]; scales: float32 [rows]; allowed: one byte a row, 1 for yes and 0 for no, or null for all.
// Writes at most `keep` rows and scores; returns how many. Safe from many threads.
// path: 0 portable, 1 AVX2, 2 AVX-512 VNNI, -1 the best here; returns -1 where this machine has not that path.
__attribute__((visibility("default"))) int64_t scan_i8(const int8_t* vectors, const float* scales, const uint8_t* allowed,
                                                       uint64_t rows, uint64_t dim, const int8_t* query, uint64_t keep,
                                                       uint32_t* out_rows, float* out_scores, int32_t path) {
    static const Dot best = choose_dot();
    const Dot dot = path < 0 ? best : named_dot(path);
    if (dot == nullptr) return -1;
    if (keep == 0) return 0;
    std::vector<Hit> heap;
    heap.reserve(std::min(keep, rows));
    for (uint64_t row = 0; row < rows; row++) {
        if (allowed != nullptr) {
            const void* next = std::memchr(allowed + row, 1, rows - row);
            if (next == nullptr) break;
            row = uint64_t(static_cast<const uint8_t*>(next) - allowed);
        }
        if (row + 4 < rows) prefetch(vectors + (row + 4) * dim, dim);
        const Hit hit{scales[row] * float(dot(vectors + row * dim, query, dim)), uint32_t(row)};
        if (heap.size() < keep) {
            heap.push_back(hit);
            std::push_heap(heap.begin(), heap.end(), better);
        } else if (better(hit, heap.front())) {
            std::pop_heap(heap.begin(), heap.end(), better);
            heap.back() = hit;
            std::push_heap(heap.begin(), heap.end(), better);
        }
    }
    std::sort_heap(heap.begin(), heap.end(), better);
    for (size_t i = 0; i < heap.size(); i++) {
        out_rows[i] = heap[i].row;
        out_scores[i] = heap[i].score;
    }
    return int64_t(heap.size());
}

}
