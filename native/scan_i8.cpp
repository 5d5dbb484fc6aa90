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

// A bit for each of `count` bytes that is not 0, count <= 64.
uint64_t nonzero(const uint8_t* bytes, uint64_t count) {
    uint64_t bits = 0, i = 0;
#if defined(__x86_64__)
    for (; i + 16 <= count; i += 16) {
        const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i));
        const int zeros = _mm_movemask_epi8(_mm_cmpeq_epi8(some, _mm_setzero_si128()));
        bits |= uint64_t(~zeros & 0xffff) << i;
    }
#endif
    constexpr uint64_t low = 0x7f7f7f7f7f7f7f7f;
    for (; i < count; i += 8) {
        uint64_t eight = 0;
        std::memcpy(&eight, bytes + i, std::min<uint64_t>(8, count - i));
        // the high bit of each byte that is not 0, then these eight side by side
        const uint64_t high = (((eight & low) + low) | eight) & ~low;
        bits |= (((high >> 7) * 0x0102040810204080) >> 56) << i;
    }
    return bits;
}

// Walks the allowed rows in order, 64 at a time as bits, so that the rows between cost no branch each.
class Allowed {
  public:
    Allowed(const uint8_t* allowed, uint64_t rows) : allowed_(allowed), rows_(rows) {}

    Block next(const int8_t* vectors, uint64_t dim) {
        Block block;
        while (block.count < BLOCK) {
            if (bits_ == 0) {
                if (start_ >= rows_) break;
                first_ = start_;
                bits_ = load(start_);
                start_ += 64;
                continue;
            }
            block.add(vectors, dim, first_ + uint64_t(__builtin_ctzll(bits_)));
            bits_ &= bits_ - 1;
        }
        return block;
    }

  private:
    uint64_t load(uint64_t start) const {
        const uint64_t count = std::min<uint64_t>(64, rows_ - start);
        if (allowed_ != nullptr) return nonzero(allowed_ + start, count);
        return count == 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
    }

    const uint8_t* allowed_;
    uint64_t rows_, start_ = 0, first_ = 0, bits_ = 0;
};

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
    Allowed remaining(allowed, rows);
    Block block = remaining.next(vectors, dim);
    while (block.count > 0) {
        const Block next = remaining.next(vectors, dim);
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
