#pragma once

#include <cstdint>

#include "ggml-backend.h"

namespace paged {

// Row-major: q [rows][heads][key_size], k [cells][kv_heads][key_size], v [cells][kv_heads][value_size], mask f16
// [rows][cells], sinks [heads] or null. Types are ggml's, for the cache.
struct Trial {
    const float *q, *k, *v;
    const uint16_t * mask;
    const float * sinks;
    int rows, cells, heads, kv_heads, key_size, value_size, key_type, value_type;
    float scale, max_bias, softcap;
};

// Row-major: weights [channels][depth], quantized here to a ggml type, activations [rows][depth].
struct ProductTrial {
    const float *weights, *activations;
    int rows, depth, channels, type;
};

// out [rows][channels], weights in the buffer where llama.cpp would put them. False as below.
bool run(const ProductTrial & trial, ggml_backend_t backend, ggml_backend_dev_t device, float * out);

// out [rows][heads][value_size]. False where the device doesn't support the operation.
bool run(const Trial & trial, ggml_backend_t backend, ggml_backend_dev_t device, float * out);

}  // namespace paged
