// Products of many rows with quantized weights, faster than ggml's: out = activations x weights^T.
//
// Weights are read where ggml's CPU backend keeps them, repacked in its CPU_REPACK buffers (block_q4_0x8). Activations are
// rounded to int8 by blocks of 32, as ggml rounds them, so results differ from ggml's in the order of sums alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace paged {

constexpr int PRODUCT_BLOCK = 32;     // elements that share a scale
constexpr int PRODUCT_CHANNELS = 32;  // channels of a strip: a multiple of what ggml interleaves

struct Product {
    const char * weights;       // block_q4_0x8 [channels / 8][depth / 32]
    const char * activations;   // f32 [rows][depth]
    char * out;                 // f32 [rows][channels]
    size_t activation_row, out_row;  // bytes
    int rows, depth, channels;
};

// Scratch, kept by the caller.
struct ProductScratch {
    std::vector<int8_t> codes;      // [rows][depth]
    std::vector<float> scales;      // [rows][depth / 32]
    std::vector<int32_t> offsets;   // [rows][depth / 32]: what weights' codes from 0 instead of -8 make too much
};

// Whether this processor has the kernel.
bool multiplies();

void multiply(const Product & product, int threads, ProductScratch & scratch);

}  // namespace paged
