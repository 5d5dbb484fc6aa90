#include "attention.h"
#include "product.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace paged {

namespace {

constexpr size_t STATE_BYTES = 512 * 1024;  // of one part: half of a usual L2 cache

#if defined(__x86_64__)
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool runs_vnni() { return runs_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

// Parts that keep their state in cache, and at least one a thread.
std::vector<Part> split(const Attention & a, const Plan & plan, int threads) {
    const int group = a.heads / a.kv_heads;
    // Few queries a page: neighbouring heads together, as they lie side by side in memory. Many: one head, whose packed
    // pages then serve more of them.
    const bool many = plan.refs.size() * group >= 64 * plan.pages.size();
    const int heads_each = many ? 1 : (a.kv_heads + threads - 1) / threads;
    const int head_parts = (a.kv_heads + heads_each - 1) / heads_each;
    const size_t row_bytes = size_t(group) * heads_each * (a.value_size + 16) * sizeof(float);
    const int row_parts = std::max<int>(1, (a.rows * row_bytes + STATE_BYTES - 1) / STATE_BYTES);
    const int pages = int(plan.pages.size());
    const int wanted = (threads + head_parts * row_parts - 1) / (head_parts * row_parts);
    const int page_parts = std::max(1, std::min(wanted, pages / 4));
    std::vector<Part> parts;
    for (int p = 0; p < page_parts; p++)
        for (int h = 0; h < a.kv_heads; h += heads_each)
            for (int r = 0; r < row_parts; r++)
                parts.push_back({h, std::min(h + heads_each, a.kv_heads), a.rows * r / row_parts,
                                 a.rows * (r + 1) / row_parts, pages * p / page_parts, pages * (p + 1) / page_parts});
    return parts;
}

// Puts the states of one (heads, rows) together, over all its page parts, and writes the rows out.
void finish(const Attention & a, const std::vector<Part> & parts, const std::vector<State> & states, size_t first, size_t step) {
    const Part & part = parts[first];
    const int group = a.heads / a.kv_heads, rows = part.row_end - part.row;
    for (int h = part.head; h < part.head_end; h++)
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < group; g++) {
                const size_t at = (size_t(h - part.head) * rows + r) * group + g;
                const int head = h * group + g;
                const float sink = a.sinks ? a.sinks[head] * float(M_LOG2E) : -INFINITY;
                float max = sink;
                for (size_t i = first; i < parts.size(); i += step) max = std::max(max, states[i].max[at]);
                float sum = sink > -INFINITY ? std::exp2(sink - max) : 0.0f;
                float * out = a.out + (size_t(part.row + r) * a.heads + head) * a.value_size;
                std::fill(out, out + a.value_size, 0.0f);
                for (size_t i = first; i < parts.size(); i += step) {
                    if (states[i].sum[at] == 0) continue;  // it saw nothing
                    const float weight = std::exp2(states[i].max[at] - max);
                    const float * from = states[i].out.data() + at * a.value_size;
                    sum += weight * states[i].sum[at];
                    for (int d = 0; d < a.value_size; d++) out[d] += weight * from[d];
                }
                const float whole = sum == 0 ? 0.0f : 1.0f / sum;
                for (int d = 0; d < a.value_size; d++) out[d] *= whole;
            }
}

}  // namespace

const std::vector<ProductType> & product_types() {
    static const std::vector<ProductType> found = [] {
        std::vector<ProductType> list;
#if defined(__x86_64__)
        if (runs_vnni()) list.assign(PRODUCTS_AVX512_VNNI, PRODUCTS_AVX512_VNNI + PRODUCT_TYPES);
#endif
        return list;
    }();
    return found;
}

const std::vector<const Kernels *> & kernels() {
    static const std::vector<const Kernels *> found = [] {
        std::vector<const Kernels *> list;
#if defined(__x86_64__)
        if (runs_vnni()) list.push_back(&KERNELS_AVX512_VNNI);
        if (runs_avx512()) list.push_back(&KERNELS_AVX512);
        if (runs_avx2()) list.push_back(&KERNELS_AVX2);
#elif defined(__aarch64__)
        list.push_back(&KERNELS_NEON);
#endif
        return list;
    }();
    return found;
}

float alibi_slope(int head, int heads, float max_bias) {
    if (max_bias <= 0) return 1.0f;
    const int below = 1 << int(std::floor(std::log2(heads)));
    return head < below ? std::pow(std::exp2(-max_bias / below), head + 1)
                        : std::pow(std::exp2(-max_bias / 2 / below), 2 * (head - below) + 1);
}

void build_plan(const Kernels & kernels, const uint16_t * mask, size_t mask_row, int rows, int cells, int threads, Plan & plan) {
    const int pages = cells / PAGE_CELLS;
    std::vector<uint64_t> seen(size_t(rows) * pages);
    bool biased = false;
#pragma omp parallel for num_threads(threads) reduction(|| : biased) if (rows > 32)
    for (int r = 0; r < rows; r++) {
        bool other = false;
        for (int p = 0; p < pages; p++)
            seen[size_t(r) * pages + p] = kernels.scan(mask + r * mask_row + size_t(p) * PAGE_CELLS, &other);
        biased = biased || other;
    }
    plan.pages.clear();
    plan.refs.clear();
    plan.biased = biased;
    for (int p = 0; p < pages; p++) {
        const int begin = int(plan.refs.size());
        for (int r = 0; r < rows; r++)
            if (const uint64_t bits = seen[size_t(r) * pages + p]) plan.refs.push_back({r, bits});
        const int end = int(plan.refs.size());
        if (end > begin) plan.pages.push_back({p * PAGE_CELLS, begin, end});
    }
}

void attend(const Kernels & kernels, const Attention & a, const Plan & plan, int threads, std::vector<State> & states) {
    const std::vector<Part> parts = split(a, plan, threads);
    if (states.size() < parts.size()) states.resize(parts.size());
    // parts over the same pages are neighbours, so those of one (heads, rows) are this far apart
    size_t step = 0;
    while (step < parts.size() && parts[step].page == parts[0].page) step++;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < parts.size(); i++) kernels.attend(a, plan, parts[i], states[i]);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < step; i++) finish(a, parts, states, i, step);
    }
}

}  // namespace paged
