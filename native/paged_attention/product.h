// Products of many rows with quantized weights, faster than ggml's: out = activations x weights^T.
//
// Weights are read where ggml's CPU backend keeps them: as the file has them (block_q6_K, block_q8_0), or repacked in its
// CPU_REPACK buffers (block_q4_0x8, block_q4_Kx8). Activations are rounded to int8 by blocks, as ggml rounds them. Sums of
// a block are whole numbers, so results differ from ggml's in the order of its sums of float32 alone, if they do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace paged {

constexpr int PRODUCT_CHANNELS = 32;  // channels of a strip: a multiple of what ggml interleaves

struct Product {
    const char * weights;       // [channels][depth] in blocks, eight channels interleaved where ggml repacked them
    const char * activations;   // f32 [rows][depth]
    char * out;                 // f32 [rows][channels]
    size_t weight_row, activation_row, out_row;  // bytes
    int rows, depth, channels;
};

struct alignas(64) Line {
    char bytes[64];
};

// Scratch, kept by the caller: the rows, rounded.
struct ProductScratch {
    std::vector<Line> rows;
};

// One type of weights, as ggml keeps it.
struct ProductType {
    int type;          // ggml_type
    bool repacked;     // eight channels interleaved, in a CPU_REPACK buffer
    int depth;         // what a product's depth is a multiple of
    int fewest_rows;   // from how many rows on it is faster than ggml, a change of backends included
    void (*multiply)(const Product & product, int threads, ProductScratch & scratch);
};

constexpr int PRODUCT_TYPES = 4;
extern const ProductType PRODUCTS_AVX512_VNNI[PRODUCT_TYPES];

// What this processor has kernels for; empty where it has none.
const std::vector<ProductType> & product_types();

}  // namespace paged
