// AVX-512 with VNNI: tiles in 16-bit integers, whose products cost half of f32's.
//
// VPDPWSSD multiplies pairs of int16 and adds into int32. A row of K, of Q or of V gets its own scale; so does each row
// of weights in each page. Steps of some 1/10000 of a row's largest element, and sums without any rounding, make that as
// exact as f16 arithmetic: bf16's products cost the same and keep 8 bits.
#include "kernel.h"

namespace paged {
namespace {

constexpr float ROW_STEPS = 32700;  // the length of a row of K or Q: a product of two stays below 2^31 (Cauchy-Schwarz)
constexpr float WEIGHT_STEPS = 8191, VALUE_STEPS = 4095;  // the largest: 64 products of these stay below 2^31
constexpr float UNEVEN = 4;  // a page's largest value, against the mean cell's, from where weights are scaled by themselves

class WideI16 {
    using I = Avx512;

public:
    void queries(const float * q, int heads, int each, int key_size, int value_size) {
        from_ = q, each_ = each, key_size_ = key_size, value_size_ = value_size;
        q_.resize(size_t(heads) * each * key_size), q_scale_.resize(size_t(heads) * each);
        even_.assign(size_t(heads) * key_size, 0.0f);
        rows_.resize(size_t(PAGE_CELLS) * std::max(key_size, value_size)), small_.resize(rows_.size());
        k_.resize(size_t(PAGE_CELLS) * key_size), v_.resize(size_t(PAGE_CELLS) * value_size);
    }

    bool page(int head, const Rows & k, const Rows & v, uint64_t seen) {
        unpack<I>(k, seen, rows_.data());
        float * even = &even_[size_t(head) * key_size_];
        const bool first = even[0] == 0;
        if (first) even_out(head, even);
        for (int cell = 0; cell < PAGE_CELLS; cell++)
            k_scale_[cell] = quantize(&rows_[size_t(cell) * key_size_], even, key_size_, &small_[size_t(cell) * key_size_]);
        for (int pair = 0; pair < key_size_ / 2; pair += 16)
            for (int cell = 0; cell < PAGE_CELLS; cell += 16) transpose(pair, cell);
        unpack<I>(v, seen, rows_.data());
        v_most_ = FLT_MIN;
        float sum = 0;
        int there = 0;
        for (int cell = 0; cell < PAGE_CELLS; cell++) {
            v_scale_[cell] = quantize_values(&rows_[size_t(cell) * value_size_], &small_[size_t(cell) * value_size_]);
            v_most_ = std::max(v_most_, v_scale_[cell]);
            sum += v_scale_[cell], there += v_scale_[cell] > 0;
        }
        uneven_ = v_most_ * there > UNEVEN * sum;
        for (int cell = 0; cell < PAGE_CELLS; cell += 2)
            for (int i = 0; i < value_size_; i += 16) interleave(cell, i);
        const bool fits = all_below(k_scale_, LARGEST_VALUE / ROW_STEPS) && all_below(v_scale_, LARGEST_VALUE / VALUE_STEPS);
        if (first && !fits) even[0] = 0;
        return fits;
    }

    void scores(const int * at, int count, float * scores) const {
        const int16_t * rows[BLOCK_QUERIES];
        for (int i = 0; i < count; i++) rows[i] = &q_[size_t(at[i]) * key_size_];
        multiply(rows, count, key_size_ / 2, k_.data(), PAGE_CELLS, [&](int row, int column, __m512i sum) {
            const __m512 scale = _mm512_mul_ps(I::load(k_scale_ + column), I::all(q_scale_[at[row]]));
            I::store(scores + row * PAGE_CELLS + column, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
        });
    }

    void weights_of(int row, float top) {
        back_[row] = top * v_most_ / WEIGHT_STEPS;
        steps_of_row_ = I::all(WEIGHT_STEPS / (top * v_most_));
    }

    void weigh(int row, int cell, __m512 weights) {
        const __m512 scaled = _mm512_mul_ps(weights, I::load(v_scale_ + cell));
        if (uneven_) I::store(&scaled_[row][cell], scaled);
        else round(row, cell, _mm512_mul_ps(scaled, steps_of_row_));
    }

    void values(const int * at, int count, const float * fades, float * out) {
        const int16_t * rows[BLOCK_QUERIES];
        for (int row = 0; row < count; row++) {
            rows[row] = weights_[row];
            if (uneven_) scale_by_itself(row);
        }
        multiply(rows, count, PAGE_CELLS / 2, v_.data(), value_size_, [&](int row, int column, __m512i sum) {
            float * to = out + size_t(at[row]) * value_size_ + column;
            const __m512 before = _mm512_mul_ps(I::load(to), I::all(fades[row]));
            I::store(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), I::all(back_[row]), before));
        });
    }

private:
    // False where one is no number, too.
    static bool all_below(const float * scales, float limit) {
        __mmask16 below = 0xFFFF;
        for (int i = 0; i < PAGE_CELLS; i += 16) below &= _mm512_cmp_ps_mask(I::load(scales + i), I::all(limit), _CMP_LT_OQ);
        return below == 0xFFFF;
    }

    void round(int row, int cell, __m512 steps) {
        _mm256_store_si256((__m256i *) &weights_[row][cell], _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(steps)));
    }

    // Where one cell's value is far larger than the others', the most that a weight could be says little.
    void scale_by_itself(int row) {
        __m512 most = I::all(FLT_MIN);
        for (int i = 0; i < PAGE_CELLS; i += 16) most = I::max(most, I::load(&scaled_[row][i]));
        back_[row] = I::most(most) / WEIGHT_STEPS;
        const __m512 steps = I::all(1.0f / back_[row]);
        for (int i = 0; i < PAGE_CELLS; i += 16) round(row, i, _mm512_mul_ps(I::load(&scaled_[row][i]), steps));
    }

    // Some elements of keys are much larger than the rest, in every cell alike: small steps for those would be large for
    // the others. So keys are multiplied by `even` and queries divided by it, half of the unevenness to each (SmoothQuant,
    // Xiao et al. 2023). Taken from the first page that is met; it is exact for any, and best where pages are alike. Rows
    // that are no numbers have no say.
    void even_out(int head, float * even) {
        const float * q = from_ + size_t(head) * each_ * key_size_;
        for (int i = 0; i < key_size_; i += 16) {
            __m512 k_most = I::all(1e-10f), q_most = I::all(1e-10f);
            for (int cell = 0; cell < PAGE_CELLS; cell++) k_most = larger(k_most, I::load(&rows_[size_t(cell) * key_size_ + i]));
            for (int at = 0; at < each_; at++) q_most = larger(q_most, I::load(q + size_t(at) * key_size_ + i));
            const __m512 ratio = _mm512_min_ps(_mm512_max_ps(_mm512_div_ps(q_most, k_most), I::all(1e-6f)), I::all(1e6f));
            I::store(even + i, _mm512_sqrt_ps(ratio));
        }
        odd_.resize(key_size_);
        for (int i = 0; i < key_size_; i++) odd_[i] = 1.0f / even[i];
        for (int at = 0; at < each_; at++)
            q_scale_[size_t(head) * each_ + at] =
                quantize(q + size_t(at) * key_size_, odd_.data(), key_size_, &q_[(size_t(head) * each_ + at) * key_size_]);
    }

    static __m512 larger(__m512 most, __m512 x) {
        const __m512 size = _mm512_abs_ps(x);
        return _mm512_mask_max_ps(most, _mm512_cmp_ps_mask(size, I::all(LARGEST_VALUE), _CMP_LT_OQ), most, size);
    }

    // f32 times `factors` to int16; returns the row's scale.
    static float quantize(const float * from, const float * factors, int size, int16_t * to) {
        __m512 squares = _mm512_setzero_ps();
        for (int i = 0; i < size; i += 16) {
            const __m512 x = _mm512_mul_ps(I::load(from + i), I::load(factors + i));
            squares = _mm512_fmadd_ps(x, x, squares);
        }
        const float scale = std::sqrt(I::sum(squares)) / ROW_STEPS;
        const __m512 back = I::all(scale > FLT_MIN ? 1.0f / scale : 0.0f);
        for (int i = 0; i < size; i += 16) {
            const __m512 x = _mm512_mul_ps(_mm512_mul_ps(I::load(from + i), I::load(factors + i)), back);
            _mm256_storeu_si256((__m256i *) (to + i), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
        }
        return scale;
    }

    // f32 to int16; returns the row's scale.
    float quantize_values(const float * from, int16_t * to) const {
        __m512i most = _mm512_setzero_si512();  // as integers, where NaN is the largest
        for (int i = 0; i < value_size_; i += 16)
            most = _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(I::load(from + i))));
        const int bits = _mm512_reduce_max_epi32(most);
        float scale;
        std::memcpy(&scale, &bits, sizeof(scale));
        scale /= VALUE_STEPS;
        const __m512 back = I::all(scale > FLT_MIN ? 1.0f / scale : 0.0f);
        for (int i = 0; i < value_size_; i += 16) {
            const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(I::load(from + i), back));
            _mm256_storeu_si256((__m256i *) (to + i), _mm512_cvtepi32_epi16(steps));
        }
        return scale;
    }

    // 16 cells x 16 pairs of key elements from rows to columns.
    void transpose(int pair, int cell) {
        const int16_t * from = &small_[size_t(cell) * key_size_ + 2 * pair];
        const int pairs = std::min(16, key_size_ / 2 - pair);
        const __mmask16 there = __mmask16((1u << pairs) - 1);
        __m512i r[16], t[16];
        for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_epi32(there, from + size_t(i) * key_size_);
        for (int i = 0; i < 16; i += 2)
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        for (int i = 0; i < 16; i += 4) {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        for (int i = 0; i < 4; i++) {
            t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
            t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
        }
        for (int i = 0; i < 4; i++) {
            r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
            r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88), r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
        }
        for (int i = 0; i < pairs; i++) _mm512_storeu_si512(&k_[size_t(pair + i) * PAGE_CELLS + cell], r[i]);
    }

    // Elements [i, i + 16) of two neighbouring cells, side by side.
    void interleave(int cell, int i) {
        const int16_t * from = &small_[size_t(cell) * value_size_ + i];
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) from));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) (from + value_size_)));
        _mm512_storeu_si512(&v_[size_t(cell / 2) * value_size_ + i], _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }

    // rows x b, of pairs of int16: rows [count][depth], b [depth][width].
    template <class Store>
    static void multiply(const int16_t * const * rows, int count, int depth, const int32_t * b, int width, Store store) {
        int row = 0;
        for (; row + 6 <= count; row += 6) across<6>(rows + row, row, depth, b, width, store);
        for (; row + 2 <= count; row += 2) across<2>(rows + row, row, depth, b, width, store);
        for (; row < count; row++) across<1>(rows + row, row, depth, b, width, store);
    }

    template <int R, class Store>
    static void across(const int16_t * const * rows, int row, int depth, const int32_t * b, int width, Store store) {
        int column = 0;
        for (; column + 64 <= width; column += 64) tile<R, 4>(rows, row, depth, b, width, column, store);
        for (; column < width; column += 16) tile<R, 1>(rows, row, depth, b, width, column, store);
    }

    // As assembly, because GCC 12 moves and spills the accumulators of the intrinsic, which halves the speed.
    static void multiply_add(__m512i & sum, __m512i left, __m512i right) {
        asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(left), "v"(right));
    }

    static __m512i pair(const int16_t * at) {
        int32_t both;
        std::memcpy(&both, at, sizeof(both));
        return _mm512_set1_epi32(both);
    }

    template <int R, int V, class Store>
    NOT_INLINED static void tile(const int16_t * const * rows, int row, int depth, const int32_t * b, int width, int column,
                                 Store store) {
        __m512i sums[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int i = 0; i < V; i++) sums[r][i] = _mm512_setzero_si512();
        for (int step = 0; step < depth; step++) {
            __m512i right[V];
#pragma GCC unroll 8
            for (int i = 0; i < V; i++) right[i] = _mm512_loadu_si512(b + size_t(step) * width + column + 16 * i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const __m512i left = pair(rows[r] + 2 * step);
#pragma GCC unroll 8
                for (int i = 0; i < V; i++) multiply_add(sums[r][i], left, right[i]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int i = 0; i < V; i++) store(row + r, column + 16 * i, sums[r][i]);
    }

    const float * from_ = nullptr;
    int each_ = 0, key_size_ = 0, value_size_ = 0;
    float v_most_ = 0;
    bool uneven_ = false;
    std::vector<int16_t> q_, small_;
    std::vector<float> q_scale_, even_, odd_, rows_;
    std::vector<int32_t> k_, v_;  // [key_size / 2][PAGE_CELLS] and [PAGE_CELLS / 2][value_size] pairs of int16
    float k_scale_[PAGE_CELLS], v_scale_[PAGE_CELLS], back_[BLOCK_QUERIES];
    __m512 steps_of_row_;
    float scaled_[BLOCK_QUERIES][PAGE_CELLS];
    alignas(64) int16_t weights_[BLOCK_QUERIES][PAGE_CELLS];
};

}  // namespace

const Kernels KERNELS_AVX512_VNNI = {"avx512-vnni", Avx512::W, Avx512::scan, Kernel<Avx512, WideI16>::attend};

}  // namespace paged
