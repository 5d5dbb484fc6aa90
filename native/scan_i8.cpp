// Exact nearest rows by int8 dot product.

#include <cstring>

#include "dot_i8.h"

namespace {

constexpr size_t BLOCK = 16;

// Rows that are on their way from memory while those of the block before are computed.
struct Block {
    uint32_t rows[BLOCK];
    size_t count = 0;

    void add(const int8_t* vectors, uint64_t dim, uint64_t row) {
        rows[count++] = uint32_t(row);
        i8::prefetch(vectors + row * dim, dim);
    }
};

// The next allowed rows from `row` on; moves `row` behind them.
Block gather(const int8_t* vectors, uint64_t dim, const uint8_t* allowed, uint64_t rows, uint64_t& row) {
    Block block;
    while (row < rows && block.count < BLOCK) {
        uint64_t eight = 1;
        if (allowed != nullptr && row + 8 <= rows) std::memcpy(&eight, allowed + row, 8);
        if (eight == 0) {
            row += 8;
        } else {
            if (allowed == nullptr || allowed[row]) block.add(vectors, dim, row);
            row++;
        }
    }
    return block;
}

}  // namespace

extern "C" {

// The rows that may be among the k best by scales[row] * dot(vectors[row], query): the k best by that, and of the
// following, up to `width` rows in all, those that i8::contenders keeps; best first, equal scores by row.
//
// vectors: int8 [rows, dim]; scales: float32 [rows], finite; query: float32 [dim]; allowed: one byte a row, 0 for no, or
// null for all. Writes at most `width` rows and scores; returns how many. Safe from many threads.
// path: of i8::Path. Returns -1 where this machine has not that path, -2 where a value of the query is not finite.
__attribute__((visibility("default"))) int64_t scan_i8(const int8_t* vectors, const float* scales, const uint8_t* allowed,
                                                       uint64_t rows, uint64_t dim, const float* query, uint64_t k,
                                                       uint64_t width, uint32_t* out_rows, float* out_scores,
                                                       int32_t path) {
    const i8::Dots dots = i8::choose(path);
    if (dots == nullptr) return -1;
    std::vector<int8_t> codes(dim);
    float query_scale;
    if (!i8::quantize(query, dim, codes.data(), &query_scale)) return -2;
    if (width == 0) return 0;
    std::vector<i8::Hit> heap;
    heap.reserve(std::min(width, rows));
    int32_t products[BLOCK];
    uint64_t row = 0;
    Block block = gather(vectors, dim, allowed, rows, row);
    while (block.count > 0) {
        const Block next = gather(vectors, dim, allowed, rows, row);
        dots(codes.data(), vectors, dim, block.rows, block.count, products);
        for (size_t i = 0; i < block.count; i++) {
            const i8::Hit hit{scales[block.rows[i]] * float(products[i]), block.rows[i]};
            if (heap.size() < width) {
                heap.push_back(hit);
                std::push_heap(heap.begin(), heap.end(), i8::better);
            } else if (i8::better(hit, heap.front())) {
                std::pop_heap(heap.begin(), heap.end(), i8::better);
                heap.back() = hit;
                std::push_heap(heap.begin(), heap.end(), i8::better);
            }
        }
        block = next;
    }
    std::sort_heap(heap.begin(), heap.end(), i8::better);
    i8::contenders(heap, k, scales, query_scale);
    return i8::give(heap, query_scale, out_rows, out_scores);
}

}
