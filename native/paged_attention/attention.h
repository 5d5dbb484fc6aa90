// What one FLASH_ATTN_EXT asks for, the pages that it reads, and the kernels that answer it.
//
//   mask ── build_plan (once a step) ──► pages of 64 cells, each with the rows that see it
//                                          │
//   page by page: K and V are read once a KV head for all rows that see the page, and for all their query heads
//                                          │
//         few rows: straight from the cache, f32      many rows: packed tiles, a matrix product
//
// Softmax is online (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022), in base 2; pages may be split over
// threads and are then merged (Flash-Decoding, Dao et al. 2023).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace paged {

constexpr int PAGE_CELLS = 64;

enum class Type { F32, F16, BF16, Q8_0 };

// Strides are in bytes, as ggml's nb.
struct Tensor {
    const char * data;
    size_t row, head;
    Type type;
};

struct Attention {
    Tensor q;        // f32 [rows][heads][key_size]
    Tensor k, v;     // [cells][kv_heads][key_size or value_size]
    float * out;     // [rows][heads][value_size], contiguous
    const uint16_t * mask;  // f16 [rows][mask_row]: added to the scores; -inf hides a cell
    size_t mask_row;        // elements
    const float * sinks;    // [heads] or nullptr: a score without a value, one a head
    int rows, heads, kv_heads, key_size, value_size;
    float scale, softcap, max_bias;  // softcap, max_bias (ALiBi): 0 is none
};

struct Ref {
    int row;
    uint64_t seen;  // bit i: the row sees cell i of the page
};

struct Page {
    int cell;               // the first of PAGE_CELLS
    int begin, end;         // its refs, ascending by row
};

// Which pages the rows of a batch see: a block table, turned round.
struct Plan {
    std::vector<Page> pages;
    std::vector<Ref> refs;
    bool biased = false;    // the mask holds other values than 0 and -inf
};

// A part of the work: query heads of [head, head_end) KV heads, of rows [row, row_end), over pages [page, page_end).
struct Part {
    int head, head_end, row, row_end, page, page_end;
};

// Where a part leaves off, for each (KV head, row, query head of the group), in this order.
struct State {
    std::vector<float> max, sum, out;  // max: in base-2 units. out: [..][value_size], not yet divided by sum
};

// One instruction set's kernels.
struct Kernels {
    const char * name;
    int lanes;  // key_size and value_size must be multiples
    // Visible cells of one page of a mask row; sets *biased where a value is neither 0 nor -inf.
    uint64_t (*scan)(const uint16_t * mask, bool * biased);
    void (*attend)(const Attention & a, const Plan & plan, const Part & part, State & state);
};

extern const Kernels KERNELS_AVX512_VNNI, KERNELS_AVX512, KERNELS_AVX2, KERNELS_NEON;

// The kernels this machine can run, best first; empty where none is.
const std::vector<const Kernels *> & kernels();

// `cells` must be a multiple of PAGE_CELLS.
void build_plan(const Kernels & kernels, const uint16_t * mask, size_t mask_row, int rows, int cells, int threads, Plan & plan);

// All of it, on so many threads. states: scratch, kept by the caller so that it is not allocated anew each time.
void attend(const Kernels & kernels, const Attention & a, const Plan & plan, int threads, std::vector<State> & states);

// The factor that ALiBi puts on a head's mask (Press et al. 2021).
float alibi_slope(int head, int heads, float max_bias);

}  // namespace paged
