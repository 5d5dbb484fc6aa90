// The kernels, over a vector of any instruction set (simd.h). Included once by each kernel_*.cpp.
#pragma once

#include <algorithm>
#include <cfloat>

#include "attention.h"
#include "simd.h"

namespace paged {
namespace {

constexpr int WIDE_QUERIES = 12;   // from here on packing a page costs less than reading it row by row
constexpr int BLOCK_QUERIES = 24;  // whose scores are made at once
constexpr float LOG2E = 1.44269504f;
constexpr float LARGEST_VALUE = 1e30f;  // times the weight of a hidden cell, at most 2^-126, this is nothing

// Keeps a tile's accumulators in registers: inlined into what surrounds it, GCC spills them.
#define NOT_INLINED __attribute__((noinline))

// Elements [i, i + W) of a cache row.
template <class I, Type T> typename I::F element(const char * row, int i) {
    if constexpr (T == Type::F32) return I::load((const float *) row + i);
    if constexpr (T == Type::F16) return I::half((const uint16_t *) row + i);
    if constexpr (T == Type::BF16) return I::brain((const uint16_t *) row + i);
    if constexpr (T == Type::Q8_0) {
        const char * block = row + size_t(i / 32) * 34;  // ggml's block_q8_0: an f16 scale, 32 bytes
        uint16_t scale;
        std::memcpy(&scale, block, 2);
        return I::mul(I::bytes((const int8_t *) block + 2 + i % 32), I::all(I::one(scale)));
    }
}

inline size_t row_bytes(Type type, int size) {
    switch (type) {
        case Type::F32: return size_t(size) * 4;
        case Type::Q8_0: return size_t(size) / 32 * 34;
        default: return size_t(size) * 2;
    }
}

// Into L2: what is asked for is a page away.
inline void prefetch(const char * row, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(row + line, 0, 2);
}

// A page of one KV head, as it lies in the cache.
struct Rows {
    const char * data;
    size_t stride;
    int size;  // elements a row
    Type type;
    const char * row(int cell) const { return data + size_t(cell) * stride; }
};

// --- few queries: straight from the cache ------------------------------------------------------------------------------

// next: the page that is read after this one, nullptr for none.
template <class I, Type T, int G>
void scores_of(const Rows & k, const char * next, const float * q, uint64_t seen, float * scores) {
    const int vectors = k.size / I::W;
    const size_t bytes = row_bytes(T, k.size);
    for (int cell = 0; cell < PAGE_CELLS; cell += 4) {
        if (next)
            for (int c = cell; c < cell + 4; c++) prefetch(next + size_t(c) * k.stride, bytes);
        if (!(seen >> cell & 15)) continue;
        typename I::F sums[4][G];
        for (int c = 0; c < 4; c++)
            for (int g = 0; g < G; g++) sums[c][g] = I::zero();
        const char * rows[4] = {k.row(cell), k.row(cell + 1), k.row(cell + 2), k.row(cell + 3)};
        for (int i = 0; i < vectors; i++) {
            typename I::F key[4];
            for (int c = 0; c < 4; c++) key[c] = element<I, T>(rows[c], i * I::W);
            for (int g = 0; g < G; g++) {
                const auto query = I::load(q + size_t(g) * k.size + i * I::W);
                for (int c = 0; c < 4; c++) sums[c][g] = I::fma(query, key[c], sums[c][g]);
            }
        }
        for (int g = 0; g < G; g++) I::sum4(sums[0][g], sums[1][g], sums[2][g], sums[3][g], scores + g * PAGE_CELLS + cell);
    }
}

template <class I, Type T, int G, int V>
void values_of(const Rows & v, const char * next, int first, const float * weights, const float * fades, uint64_t seen,
               float * out) {
    typename I::F sums[G][V];
    for (int g = 0; g < G; g++)
        for (int i = 0; i < V; i++) sums[g][i] = I::mul(I::load(out + size_t(g) * v.size + first + i * I::W), I::all(fades[g]));
    for (int cell = 0; cell < PAGE_CELLS; cell++) {
        if (next) prefetch(next + size_t(cell) * v.stride, row_bytes(T, v.size));
        if (!(seen >> cell & 1)) continue;
        const char * row = v.row(cell);
        typename I::F value[V];
        for (int i = 0; i < V; i++) value[i] = element<I, T>(row, first + i * I::W);
        for (int g = 0; g < G; g++) {
            const auto weight = I::all(weights[g * PAGE_CELLS + cell]);
            for (int i = 0; i < V; i++) sums[g][i] = I::fma(weight, value[i], sums[g][i]);
        }
    }
    for (int g = 0; g < G; g++)
        for (int i = 0; i < V; i++) I::store(out + size_t(g) * v.size + first + i * I::W, sums[g][i]);
}

// The query heads of one group, up to four at a time.
template <class I, Type T>
void narrow_scores(const Rows & k, const char * next, const float * q, int group, uint64_t seen, float * scores) {
    for (int g = 0; g < group; g += 4, next = nullptr) {
        const float * from = q + size_t(g) * k.size;
        float * to = scores + size_t(g) * PAGE_CELLS;
        switch (std::min(4, group - g)) {
            case 1: scores_of<I, T, 1>(k, next, from, seen, to); break;
            case 2: scores_of<I, T, 2>(k, next, from, seen, to); break;
            case 3: scores_of<I, T, 3>(k, next, from, seen, to); break;
            default: scores_of<I, T, 4>(k, next, from, seen, to);
        }
    }
}

template <class I, Type T, int G>
void narrow_values_of(const Rows & v, const char * next, const float * weights, const float * fades, uint64_t seen, float * out) {
    int first = 0;
    constexpr int V = I::TILE_VECTORS;
    for (; first + V * I::W <= v.size; first += V * I::W, next = nullptr)
        values_of<I, T, G, V>(v, next, first, weights, fades, seen, out);
    for (; first < v.size; first += I::W, next = nullptr) values_of<I, T, G, 1>(v, next, first, weights, fades, seen, out);
}

template <class I, Type T>
void narrow_values(const Rows & v, const char * next, const float * weights, const float * fades, int group, uint64_t seen,
                   float * out) {
    for (int g = 0; g < group; g += 4, next = nullptr) {
        const float * w = weights + size_t(g) * PAGE_CELLS;
        float * to = out + size_t(g) * v.size;
        switch (std::min(4, group - g)) {
            case 1: narrow_values_of<I, T, 1>(v, next, w, fades + g, seen, to); break;
            case 2: narrow_values_of<I, T, 2>(v, next, w, fades + g, seen, to); break;
            case 3: narrow_values_of<I, T, 3>(v, next, w, fades + g, seen, to); break;
            default: narrow_values_of<I, T, 4>(v, next, w, fades + g, seen, to);
        }
    }
}

// --- many queries: packed tiles ----------------------------------------------------------------------------------------

template <class I, Type T> void unpack(const Rows & from, uint64_t seen, float * to) {
    for (int cell = 0; cell < PAGE_CELLS; cell++, to += from.size)
        for (int i = 0; i < from.size; i += I::W)
            I::store(to + i, seen >> cell & 1 ? element<I, T>(from.row(cell), i) : I::zero());
}

// The page's seen cells as f32 [PAGE_CELLS][size]; zero where not seen, whatever lies there.
template <class I> void unpack(const Rows & from, uint64_t seen, float * to) {
    switch (from.type) {
        case Type::F32: return unpack<I, Type::F32>(from, seen, to);
        case Type::F16: return unpack<I, Type::F16>(from, seen, to);
        case Type::BF16: return unpack<I, Type::BF16>(from, seen, to);
        case Type::Q8_0: return unpack<I, Type::Q8_0>(from, seen, to);
    }
}

// 4 x 4 floats, rows to columns.
inline void transpose(const float * from, int row, float * to, int column) {
    using Four = float __attribute__((vector_size(16)));
    Four a, b, c, d;
    std::memcpy(&a, from, 16), std::memcpy(&b, from + row, 16);
    std::memcpy(&c, from + 2 * row, 16), std::memcpy(&d, from + 3 * row, 16);
    const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Four ef = __builtin_shufflevector(a, b, 2, 6, 3, 7), gh = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Four columns[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                             __builtin_shufflevector(ef, gh, 0, 1, 4, 5), __builtin_shufflevector(ef, gh, 2, 3, 6, 7)};
    for (int i = 0; i < 4; i++) std::memcpy(to + i * column, &columns[i], 16);
}

// Tiles in f32. Another Wide has the same functions.
template <class I> class WideF32 {
public:
    // q: f32 [heads][each][key_size], all that the part will ask with.
    void queries(const float * q, int, int, int key_size, int value_size) {
        q_ = q, key_size_ = key_size, value_size_ = value_size;
        rows_.resize(size_t(PAGE_CELLS) * key_size), k_.resize(rows_.size()), v_.resize(size_t(PAGE_CELLS) * value_size);
    }

    // The page of a KV head, counted from the part's first. False where a row could tell what is in a cell that it does not
    // see: the product of a weight of nothing and of a value that is no number.
    bool page(int, const Rows & k, const Rows & v, uint64_t seen) {
        unpack<I>(k, seen, rows_.data());
        for (int i = 0; i < key_size_; i += 4)
            for (int cell = 0; cell < PAGE_CELLS; cell += 4)
                transpose(&rows_[size_t(cell) * key_size_ + i], key_size_, &k_[size_t(i) * PAGE_CELLS + cell], PAGE_CELLS);
        unpack<I>(v, seen, v_.data());
        // what is no number, or too large, makes a sum that is no number
        typename I::F sums[4] = {I::zero(), I::zero(), I::zero(), I::zero()};
        for (const float * x = v_.data(); x < v_.data() + v_.size(); x += 4 * I::W)
            for (int i = 0; i < 4; i++) sums[i] = I::fma(I::load(x + i * I::W), I::all(FLT_MAX / LARGEST_VALUE), sums[i]);
        return std::isfinite(I::sum(I::add(I::add(sums[0], sums[1]), I::add(sums[2], sums[3]))));
    }

    // scores [count][PAGE_CELLS] of the queries numbered `at`.
    void scores(const int * at, int count, float * scores) const {
        const float * rows[BLOCK_QUERIES];
        for (int i = 0; i < count; i++) rows[i] = q_ + size_t(at[i]) * key_size_;
        multiply(rows, count, key_size_, k_.data(), PAGE_CELLS, [&](int row, int column, typename I::F sum) {
            I::store(scores + row * PAGE_CELLS + column, sum);
        });
    }

    // The weights of one row of a block, whose largest is `top`: cells [cell, cell + W).
    void weights_of(int, float) {}
    void weigh(int row, int cell, typename I::F weights) { I::store(weights_ + row * PAGE_CELLS + cell, weights); }

    // out[at] = out[at] * fades + weights x values.
    void values(const int * at, int count, const float * fades, float * out) const {
        const float * rows[BLOCK_QUERIES];
        for (int i = 0; i < count; i++) rows[i] = weights_ + i * PAGE_CELLS;
        multiply(rows, count, PAGE_CELLS, v_.data(), value_size_, [&](int row, int column, typename I::F sum) {
            float * to = out + size_t(at[row]) * value_size_ + column;
            I::store(to, I::fma(I::load(to), I::all(fades[row]), sum));
        });
    }

private:
    template <class Store>
    static void multiply(const float * const * rows, int count, int depth, const float * b, int width, Store store) {
        constexpr int V = I::TILE_VECTORS;
        for (int row = 0; row < count; row += I::TILE_ROWS) {
            const bool whole = row + I::TILE_ROWS <= count;
            int column = 0;
            for (; column + V * I::W <= width; column += V * I::W)
                whole ? tile<I::TILE_ROWS, V>(rows, row, depth, b, width, column, store)
                      : ragged<V>(rows, row, count, depth, b, width, column, store);
            for (; column < width; column += I::W)
                ragged<1>(rows, row, std::min(count, row + I::TILE_ROWS), depth, b, width, column, store);
        }
    }

    template <int V, class Store>
    static void ragged(const float * const * rows, int row, int end, int depth, const float * b, int width, int column,
                       Store store) {
        for (; row < end; row++) tile<1, V>(rows, row, depth, b, width, column, store);
    }

    template <int R, int V, class Store>
    NOT_INLINED static void tile(const float * const * rows, int row, int depth, const float * b, int width, int column,
                                 Store store) {
        typename I::F sums[R][V];
        for (int r = 0; r < R; r++)
            for (int i = 0; i < V; i++) sums[r][i] = I::zero();
        for (int step = 0; step < depth; step++) {
            typename I::F right[V];
            for (int i = 0; i < V; i++) right[i] = I::load(b + size_t(step) * width + column + i * I::W);
            for (int r = 0; r < R; r++) {
                const auto left = I::all(rows[row + r][step]);
                for (int i = 0; i < V; i++) sums[r][i] = I::fma(left, right[i], sums[r][i]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int i = 0; i < V; i++) store(row + r, column + i * I::W, sums[r][i]);
    }

    const float * q_ = nullptr;
    int key_size_ = 0, value_size_ = 0;
    float weights_[BLOCK_QUERIES * PAGE_CELLS];
    std::vector<float> rows_, k_, v_;
};

// --- softmax -----------------------------------------------------------------------------------------------------------

// A query's running softmax: the largest score so far, and its weights' sum, lane by lane.
template <class I> struct Running {
    float max;
    float sum[I::W];
};

// Scores of one page to weights 2^(score - max), as the running maximum goes on.
struct Softmax {
    float softcap = 0, slope = 0;  // both times log2 e

    // Makes the scores final, in place, and takes the running maximum on. Returns how much of what was summed up before is
    // left; *top: the largest weight here. Apart from `weigh`, so that the rows of a block don't wait for one another.
    template <class I> float limit(float * scores, uint64_t seen, const uint16_t * bias, Running<I> & running, float * top) const {
        typename I::F most = I::all(-INFINITY);
        const bool plain = seen == ~uint64_t(0) && !bias && softcap == 0;
        for (int i = 0; i < PAGE_CELLS; i += I::W) {
            auto x = I::load(scores + i);
            if (!plain) {
                if (softcap != 0) x = I::mul(tanh<I>(x), I::all(softcap));
                if (bias) x = I::fma(I::half(bias + i), I::all(slope), x);
                x = I::hide(x, unsigned(seen >> i) & ((1u << I::W) - 1));
                I::store(scores + i, x);
            }
            most = I::max(x, most);  // in this order: NaN is no largest
        }
        const float here = I::most(most), before = running.max;
        const float max = running.max = std::max(before, here);
        // of old and new maximum one stays, so one exponential tells both what is left and what is the largest here
        const float other = I::first(exp2<I>(I::all(std::min(before, here) - max)));
        *top = here > before ? 1.0f : other;
        return here > before ? other : 1.0f;
    }

    // each(i, weights) gets those of cells [i, i + W).
    template <class I, class Each> void weigh(const float * scores, float fade, Running<I> & running, Each each) const {
        auto total = I::mul(I::load(running.sum), I::all(fade));
        for (int i = 0; i < PAGE_CELLS; i += I::W) {
            const auto weights = exp2<I>(I::sub(I::load(scores + i), I::all(running.max)));
            total = I::add(total, weights);
            each(i, weights);
        }
        I::store(running.sum, total);
    }
};

// --- a part ------------------------------------------------------------------------------------------------------------

template <class I, class Wide> class Kernel {
public:
    static void attend(const Attention & a, const Plan & plan, const Part & part, State & state) {
        Kernel(a, plan, part, state).run();
    }

private:
    Kernel(const Attention & a, const Plan & plan, const Part & part, State & state)
        : a_(a), plan_(plan), part_(part), state_(state), group_(a.heads / a.kv_heads), rows_(part.row_end - part.row) {}

    void run() {
        const size_t count = size_t(part_.head_end - part_.head) * rows_ * group_;
        running_.assign(count, {-INFINITY, {}});
        state_.out.assign(count * a_.value_size, 0.0f);
        scores_.resize(size_t(std::max(group_, BLOCK_QUERIES)) * PAGE_CELLS), fades_.resize(std::max(group_, BLOCK_QUERIES));
        take_slopes();
        take_queries(count);
        for (int p = part_.page; p < part_.page_end; p++) {
            const Page & page = plan_.pages[p];
            const auto below = [](const Ref & ref, int row) { return ref.row < row; };
            const Ref * begin = std::lower_bound(&plan_.refs[page.begin], plan_.refs.data() + page.end, part_.row, below);
            const Ref * end = std::lower_bound(begin, plan_.refs.data() + page.end, part_.row_end, below);
            const int next = p + 1 < part_.page_end ? plan_.pages[p + 1].cell : -1;
            const bool many = (end - begin) * group_ >= WIDE_QUERIES;
            for (int head = part_.head; head < part_.head_end && begin < end; head++)
                if (!many || !wide(page.cell, head, begin, end)) narrow(page.cell, next, head, begin, end);
        }
        state_.max.resize(count), state_.sum.resize(count);
        for (size_t i = 0; i < count; i++) state_.max[i] = running_[i].max, state_.sum[i] = I::sum(I::load(running_[i].sum));
    }

    // Queries in the order of the state, scaled so that scores come out in base 2 (or as the soft-cap wants them).
    void take_queries(size_t count) {
        const float scale = a_.softcap != 0 ? a_.scale / a_.softcap : a_.scale * LOG2E;
        queries_.resize(count * a_.key_size);
        for (int head = part_.head; head < part_.head_end; head++)
            for (int row = part_.row; row < part_.row_end; row++)
                for (int g = 0; g < group_; g++) {
                    const float * from = (const float *) (a_.q.data + row * a_.q.row + size_t(head * group_ + g) * a_.q.head);
                    float * to = queries_.data() + size_t(number(head, row) + g) * a_.key_size;
                    for (int i = 0; i < a_.key_size; i += I::W) I::store(to + i, I::mul(I::load(from + i), I::all(scale)));
                }
    }

    void take_slopes() {
        slopes_.resize(size_t(part_.head_end - part_.head) * group_);
        for (size_t i = 0; i < slopes_.size(); i++)
            slopes_[i] = plan_.biased ? alibi_slope(part_.head * group_ + int(i), a_.heads, a_.max_bias) * LOG2E : 0.0f;
    }

    int number(int head, int row) const { return ((head - part_.head) * rows_ + row - part_.row) * group_; }

    static Rows page(const Tensor & from, int cell, int head, int size) {
        return {from.data + cell * from.row + head * from.head, from.row, size, from.type};
    }
    Rows keys(int cell, int head) const { return page(a_.k, cell, head, a_.key_size); }
    Rows vals(int cell, int head) const { return page(a_.v, cell, head, a_.value_size); }

    const uint16_t * bias(int row, int cell) const { return plan_.biased ? a_.mask + row * a_.mask_row + cell : nullptr; }

    Softmax softmax(int head, int g) const { return {a_.softcap * LOG2E, slopes_[(head - part_.head) * group_ + g]}; }

    void narrow(int cell, int next, int head, const Ref * begin, const Ref * end) {
        const Rows k = keys(cell, head), v = vals(cell, head);
        const char * next_k = next < 0 ? nullptr : keys(next, head).data;
        const char * next_v = next < 0 ? nullptr : vals(next, head).data;
        for (const Ref * ref = begin; ref < end; ref++, next_k = next_v = nullptr) {
            const int at = number(head, ref->row);
            const float * q = queries_.data() + size_t(at) * a_.key_size;
            switch (k.type) {
                case Type::F32: narrow_scores<I, Type::F32>(k, next_k, q, group_, ref->seen, scores_.data()); break;
                case Type::F16: narrow_scores<I, Type::F16>(k, next_k, q, group_, ref->seen, scores_.data()); break;
                case Type::BF16: narrow_scores<I, Type::BF16>(k, next_k, q, group_, ref->seen, scores_.data()); break;
                case Type::Q8_0: narrow_scores<I, Type::Q8_0>(k, next_k, q, group_, ref->seen, scores_.data()); break;
            }
            float top;
            for (int g = 0; g < group_; g++)
                fades_[g] = softmax(head, g).template limit<I>(scores_.data() + g * PAGE_CELLS, ref->seen, bias(ref->row, cell),
                                                               running_[at + g], &top);
            for (int g = 0; g < group_; g++) {
                float * scores = scores_.data() + g * PAGE_CELLS;
                const auto store = [scores](int i, typename I::F weights) { I::store(scores + i, weights); };
                Softmax().weigh<I>(scores, fades_[g], running_[at + g], store);
            }
            float * out = state_.out.data() + size_t(at) * a_.value_size;
            switch (v.type) {
                case Type::F32: narrow_values<I, Type::F32>(v, next_v, scores_.data(), fades_.data(), group_, ref->seen, out); break;
                case Type::F16: narrow_values<I, Type::F16>(v, next_v, scores_.data(), fades_.data(), group_, ref->seen, out); break;
                case Type::BF16: narrow_values<I, Type::BF16>(v, next_v, scores_.data(), fades_.data(), group_, ref->seen, out); break;
                case Type::Q8_0: narrow_values<I, Type::Q8_0>(v, next_v, scores_.data(), fades_.data(), group_, ref->seen, out); break;
            }
        }
    }

    // False where the page is none for wide_; then nothing is done.
    bool wide(int cell, int head, const Ref * begin, const Ref * end) {
        uint64_t any = 0;
        for (const Ref * ref = begin; ref < end; ref++) any |= ref->seen;
        if (!prepared_) wide_.queries(queries_.data(), part_.head_end - part_.head, rows_ * group_, a_.key_size, a_.value_size);
        prepared_ = true;
        if (!wide_.page(head - part_.head, keys(cell, head), vals(cell, head), any)) return false;
        int at[BLOCK_QUERIES];
        float fades[BLOCK_QUERIES], tops[BLOCK_QUERIES];
        const Ref * refs[BLOCK_QUERIES];
        const int queries = int(end - begin) * group_;
        for (int first = 0; first < queries; first += BLOCK_QUERIES) {
            const int count = std::min(BLOCK_QUERIES, queries - first);
            for (int i = 0; i < count; i++) {
                refs[i] = begin + (first + i) / group_;
                at[i] = number(head, refs[i]->row) + (first + i) % group_;
            }
            wide_.scores(at, count, scores_.data());
            for (int i = 0; i < count; i++)
                fades[i] = softmax(head, (first + i) % group_).template limit<I>(
                    scores_.data() + i * PAGE_CELLS, refs[i]->seen, bias(refs[i]->row, cell), running_[at[i]], &tops[i]);
            for (int i = 0; i < count; i++) {
                wide_.weights_of(i, tops[i]);
                Softmax().weigh<I>(scores_.data() + i * PAGE_CELLS, fades[i], running_[at[i]],
                                   [&](int cells, typename I::F weights) { wide_.weigh(i, cells, weights); });
            }
            wide_.values(at, count, fades, state_.out.data());
        }
        return true;
    }

    const Attention & a_;
    const Plan & plan_;
    const Part part_;
    State & state_;
    const int group_, rows_;
    std::vector<Running<I>> running_;
    std::vector<float> queries_, scores_, fades_, slopes_;
    Wide wide_;
    bool prepared_ = false;  // wide_ has the queries
};

}  // namespace
}  // namespace paged
