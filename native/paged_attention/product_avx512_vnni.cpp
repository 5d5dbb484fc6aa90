// VPDPBUSD: 64 products of unsigned and signed bytes an instruction, added into 16 sums.
#include "product.h"
#include "product_blocks.h"

#include "ggml.h"

#include <algorithm>

namespace paged {

namespace {

constexpr int ROWS = 6;  // of a tile: with 32 channels 12 accumulators a sum, of 32 registers

// What a block of one row is rounded to. offsets: what codes of weights from 0 on make too much, for each part.
template <class Type> struct Rounded {
    static constexpr int PARTS = Type::BLOCK / Type::PART;
    int8_t codes[Type::BLOCK];
    float scale;
    int32_t offsets[PARTS];
    int16_t sums[PARTS + PARTS % 2];
};

inline float largest(const float * from, int count) {
    __m512 most = _mm512_setzero_ps();
    for (int i = 0; i < count; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(from + i)));
    return _mm512_reduce_max_ps(most);
}

// A row to int8 by blocks, as ggml's quantize_row_q8_0 (32 elements, the scale in f16) and quantize_row_q8_K (256).
template <class Type> void round_row(const float * from, int blocks, Rounded<Type> * to) {
    for (int b = 0; b < blocks; b++, to++, from += Type::BLOCK) {
        const float most = largest(from, Type::BLOCK), factor = most > 0 ? 127.0f / most : 0.0f;
        to->scale = Type::BLOCK == 32 ? _cvtsh_ss(_cvtss_sh(most / 127.0f, 0)) : most > 0 ? 1 / factor : 0.0f;
        for (int p = 0; p < Rounded<Type>::PARTS; p++) {
            __m512i sum = _mm512_setzero_si512();
            for (int i = p * Type::PART; i < (p + 1) * Type::PART; i += 16) {
                const __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_set1_ps(factor)));
                _mm_storeu_si128((__m128i *) (to->codes + i), _mm512_cvtepi32_epi8(codes));
                sum = _mm512_add_epi32(sum, codes);
            }
            const int whole = _mm512_reduce_add_epi32(sum);
            to->offsets[p] = -Type::ZERO * whole, to->sums[p] = int16_t(whole);
        }
    }
}

// As assembly, because GCC 12 moves and spills the accumulators of the intrinsics.
inline void multiply_add(__m512i & sum, __m512i weights, __m512i activations) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(activations));
}
inline void multiply_add_pairs(__m512i & sum, __m512i left, __m512i right) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(left), "v"(right));
}

inline __m512i four_bytes(const void * from) {
    int32_t four;
    std::memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
}

// Has so many lines come into the cache; where they end.
inline const char * fetch(const char * at, int lines) {
    for (; lines > 0; lines--, at += sizeof(Line)) _mm_prefetch(at, _MM_HINT_T1);
    return at;
}

// R rows x 32 channels of one block, as whole numbers.
template <class Type, int R> inline void block_sums(const typename Type::Block & weights, const Rounded<Type> * row, size_t stride, __m512i (&whole)[R][2]) {
    constexpr int PARTS = Rounded<Type>::PARTS, STEPS = Type::PART / 4;
    for (int part = 0; part < PARTS; part++) {
        __m512i sum[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = Type::ZERO ? _mm512_set1_epi32(row[r * stride].offsets[part]) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int step = part * STEPS; step < (part + 1) * STEPS; step++) {
            const __m512i first = _mm512_load_si512(weights.codes[step]), second = _mm512_load_si512(weights.codes[step][16]);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const __m512i activations = four_bytes(row[r * stride].codes + 4 * step);
                multiply_add(sum[r][0], first, activations), multiply_add(sum[r][1], second, activations);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                if constexpr (PARTS == 1) whole[r][half] = sum[r][half];
                else {
                    const __m512i scaled = _mm512_mullo_epi32(sum[r][half], _mm512_load_si512(&weights.part_scales[part][16 * half]));
                    whole[r][half] = part ? _mm512_add_epi32(whole[r][half], scaled) : scaled;
                }
            }
    }
}

// R rows x 32 channels. Meanwhile so many lines a block from `soon` on come into the cache.
template <class Type, int R>
__attribute__((noinline)) void tile(const typename Type::Block * weights, const Rounded<Type> * row, int blocks, char * out, size_t out_row,
                                    const char * soon, int lines) {
    __m512 total[R][2], low[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) total[r][0] = total[r][1] = low[r][0] = low[r][1] = _mm512_setzero_ps();
    for (int b = 0; b < blocks; b++, weights++, row++) {
        soon = fetch(soon, lines);
        __m512i whole[R][2];
        block_sums<Type, R>(*weights, row, blocks, whole);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                const __m512 scale = _mm512_set1_ps(row[size_t(r) * blocks].scale);
                total[r][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[r][half]), _mm512_mul_ps(_mm512_load_ps(weights->scales + 16 * half), scale), total[r][half]);
                if constexpr (Type::MINS) {
                    __m512i mins = _mm512_setzero_si512();
#pragma GCC unroll 8
                    for (int p = 0; p < Rounded<Type>::PARTS; p += 2)
                        multiply_add_pairs(mins, _mm512_load_si512(weights->mins[p / 2][16 * half]), four_bytes(row[size_t(r) * blocks].sums + p));
                    low[r][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(mins), _mm512_mul_ps(_mm512_load_ps(weights->min_scales + 16 * half), scale), low[r][half]);
                }
            }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
            _mm512_storeu_ps((float *) (out + r * out_row) + 16 * half, Type::MINS ? _mm512_sub_ps(total[r][half], low[r][half]) : total[r][half]);
}

template <class Type> void multiply(const Product & p, int threads, ProductScratch & s) {
    using Block = typename Type::Block;
    const int blocks = p.depth / Type::BLOCK;
    static constexpr decltype(&tile<Type, 1>) compute[ROWS] = {tile<Type, 1>, tile<Type, 2>, tile<Type, 3>, tile<Type, 4>, tile<Type, 5>, tile<Type, ROWS>};
    const int tiles = (p.rows + ROWS - 1) / ROWS;  // of sizes as equal as may be
    const auto lines = [](size_t bytes) { return (bytes + sizeof(Line) - 1) / sizeof(Line); };
    s.rows.resize(std::max(s.rows.size(), lines(size_t(p.rows) * blocks * sizeof(Rounded<Type>))));
    Rounded<Type> * const rows = (Rounded<Type> *) s.rows.data();
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int row = 0; row < p.rows; row++)
            round_row<Type>((const float *) (p.activations + row * p.activation_row), blocks, rows + size_t(row) * blocks);
        std::vector<Line> strip(lines(blocks * sizeof(Block)));
        Block * const weights = (Block *) strip.data();
#pragma omp for schedule(dynamic, 1)
        for (int channel = 0; channel < p.channels; channel += PRODUCT_CHANNELS) {
            // the next strip comes into the cache meanwhile: half of it early where unpacking takes long
            const int each = channel + PRODUCT_CHANNELS < p.channels ? int(lines(PRODUCT_CHANNELS * p.weight_row) + blocks - 1) / blocks : 0;
            const int early = Type::REPACKED ? 0 : each / 2;
            const char * const from = p.weights + channel * p.weight_row, *next = from + PRODUCT_CHANNELS * p.weight_row;
            for (int b = 0; b < blocks; b++) next = fetch(next, early), Type::unpack(from, blocks, b, weights[b]);
            for (int t = 0; t < tiles; t++) {
                const int row = p.rows * t / tiles, end = p.rows * (t + 1) / tiles;
                compute[end - row - 1](weights, rows + size_t(row) * blocks, blocks, p.out + row * p.out_row + channel * sizeof(float), p.out_row,
                                       next, t == 0 ? each - early : 0);
            }
        }
    }
}

}  // namespace

const ProductType PRODUCTS_AVX512_VNNI[PRODUCT_TYPES] = {
    {GGML_TYPE_Q4_0, Q4_0::REPACKED, Q4_0::BLOCK, 3, multiply<Q4_0>},
    {GGML_TYPE_Q4_K, Q4_K::REPACKED, Q4_K::BLOCK, 3, multiply<Q4_K>},
    {GGML_TYPE_Q6_K, Q6_K::REPACKED, Q6_K::BLOCK, 3, multiply<Q6_K>},
    {GGML_TYPE_Q8_0, Q8_0::REPACKED, Q8_0::BLOCK, 2, multiply<Q8_0>},
};

}  // namespace paged
