// Exact nearest rows by int8 dot product.

#include "dot_i8.h"

namespace {

constexpr size_t BLOCK = 16;

// Rows that are on their way from memory while those of the block before are computed.
struct Block {
    uint32_t rows[BLOCK];
    size_t count = 0;

    void add(const i8::Rows& of, uint64_t row) {
        rows[count++] = uint32_t(row);
        i8::prefetch(of.vectors + row * of.dim, of.dim);
        __builtin_prefetch(of.scales + row);
    }
};

// Walks the allowed rows in order; the rows between cost no branch each.
class Allowed {
  public:
    Allowed(const uint64_t* allowed, uint64_t rows) : allowed_(allowed), rows_(rows) {}

    Block next(const i8::Rows& of) {
        Block block;
        while (block.count < BLOCK) {
            if (bits_ == 0) {
                if (start_ >= rows_) break;
                first_ = start_;
                bits_ = load(start_);
                start_ += 64;
                continue;
            }
            block.add(of, first_ + uint64_t(__builtin_ctzll(bits_)));
            bits_ &= bits_ - 1;
        }
        return block;
    }

  private:
    uint64_t load(uint64_t start) const {
        if (allowed_ != nullptr) return allowed_[start / 64];
        const uint64_t count = std::min<uint64_t>(64, rows_ - start);
        return count == 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
    }

    const uint64_t* allowed_;
    uint64_t rows_, start_ = 0, first_ = 0, bits_ = 0;
};

}  // namespace

extern "C" {

// The rows that may be among the k best by scales[row] * dot(vectors[row], query): the k best by that, and of the
// following, up to `width` rows in all, those that i8::contenders keeps; best first, equal scores by row.
//
// query: float32 [dim]; allowed: what allowed_bits made, or null for all. Writes at most `width` rows and scores; returns
// how many. Safe from many threads.
// path: of i8::Path. Returns -1 where this machine has not that path, -2 where a value of the query is not finite.
__attribute__((visibility("default"))) int64_t scan_i8(const i8::Rows* of, const uint64_t* allowed, const float* query,
                                                       uint64_t k, uint64_t width, uint32_t* out_rows,
                                                       float* out_scores, int32_t path) {
    const i8::Dots dots = i8::choose(path);
    if (dots == nullptr) return -1;
    std::vector<int8_t> codes(of->dim);
    float query_scale;
    if (!i8::quantize(query, of->dim, codes.data(), &query_scale)) return -2;
    if (width == 0) return 0;
    std::vector<i8::Hit> heap;
    heap.reserve(std::min(width, of->rows));
    int32_t products[BLOCK];
    Allowed remaining(allowed, of->rows);
    Block block = remaining.next(*of);
    while (block.count > 0) {
        const Block next = remaining.next(*of);
        dots(codes.data(), of->vectors, of->dim, block.rows, block.count, products);
        for (size_t i = 0; i < block.count; i++) {
            const i8::Hit hit{of->scales[block.rows[i]] * float(products[i]), block.rows[i]};
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
    i8::contenders(heap, k, of->scales, query_scale);
    return i8::give(heap, query_scale, out_rows, out_scores);
}

}
