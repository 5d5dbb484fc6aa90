// One operation on numbers that the caller gives, by a backend that the caller names, as ggml would run it: for the
// self-test at registration, and for the tests to compare with ggml's own kernel and with exact arithmetic.
#include "trial.h"

#include "ggml-alloc.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <cstring>
#include <vector>

namespace paged {

namespace {

void fill(ggml_tensor * t, const float * values) {
    if (t->type == GGML_TYPE_F32) std::memcpy(t->data, values, ggml_nbytes(t));
    else if (t->type == GGML_TYPE_BF16) ggml_fp32_to_bf16_row(values, (ggml_bf16_t *) t->data, ggml_nelements(t));
    else if (t->type == GGML_TYPE_F16) ggml_fp32_to_fp16_row(values, (ggml_fp16_t *) t->data, ggml_nelements(t));
    else ggml_quantize_chunk(t->type, values, t->data, 0, ggml_nrows(t), t->ne[0], nullptr);
}

// A cache as llama.cpp lays it out, [cells][heads x size], seen as attention wants it, [heads][cells][size].
ggml_tensor * by_head(ggml_context * ctx, ggml_tensor * cache, int size, int cells, int heads) {
    const size_t head = ggml_row_size(cache->type, size);
    return ggml_view_3d(ctx, cache, size, cells, heads, cache->nb[1], head, 0);
}

// Where llama.cpp keeps weights: in the first of the CPU's own types of buffers that it can multiply from.
ggml_backend_buffer_type_t buffer_for(ggml_tensor * weights, const ggml_tensor * product) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const auto extra = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t * type = extra ? extra(cpu) : nullptr; type && *type; type++) {
        weights->buffer = ggml_backend_buft_alloc_buffer(*type, 0);
        const bool fits = ggml_backend_dev_supports_op(cpu, product);
        ggml_backend_buffer_free(weights->buffer);
        weights->buffer = nullptr;
        if (fits) return *type;
    }
    return ggml_backend_cpu_buffer_type();
}

}  // namespace

bool run(const Trial & t, ggml_backend_t backend, ggml_backend_dev_t device, float * out) {
    ggml_context * ctx = ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true});
    ggml_tensor * queries = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, t.key_size, t.heads, t.rows);
    ggml_tensor * keys = ggml_new_tensor_2d(ctx, ggml_type(t.key_type), t.key_size * t.kv_heads, t.cells);
    ggml_tensor * values = ggml_new_tensor_2d(ctx, ggml_type(t.value_type), t.value_size * t.kv_heads, t.cells);
    ggml_tensor * mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, t.cells, t.rows);
    ggml_tensor * sinks = t.sinks ? ggml_new_tensor_1d(ctx, GGML_TYPE_F32, t.heads) : nullptr;
    ggml_tensor * result =
        ggml_flash_attn_ext(ctx, ggml_permute(ctx, queries, 0, 2, 1, 3), by_head(ctx, keys, t.key_size, t.cells, t.kv_heads),
                            by_head(ctx, values, t.value_size, t.cells, t.kv_heads), mask, t.scale, t.max_bias, t.softcap);
    ggml_flash_attn_ext_add_sinks(result, sinks);
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, result);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_cpu_buffer_type());
    fill(queries, t.q), fill(keys, t.k), fill(values, t.v);
    std::memcpy(mask->data, t.mask, ggml_nbytes(mask));
    if (sinks) fill(sinks, t.sinks);
    std::memset(result->data, 0xFF, ggml_nbytes(result));  // NaN: what is not written shows
    const bool done = ggml_backend_dev_supports_op(device, result) && ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS;
    std::memcpy(out, result->data, ggml_nbytes(result));
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    return done;
}

bool run(const ProductTrial & t, ggml_backend_t backend, ggml_backend_dev_t device, float * out) {
    ggml_context * held = ggml_init({ggml_tensor_overhead(), nullptr, true});
    ggml_context * ctx = ggml_init({ggml_tensor_overhead() * 4 + ggml_graph_overhead(), nullptr, true});
    ggml_tensor * weights = ggml_new_tensor_2d(held, ggml_type(t.type), t.depth, t.channels);
    ggml_tensor * activations = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, t.depth, t.rows);
    ggml_tensor * result = ggml_mul_mat(ctx, weights, activations);
    ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, result);
    ggml_backend_buffer_t weights_buffer = ggml_backend_alloc_ctx_tensors_from_buft(held, buffer_for(weights, result));
    ggml_backend_buffer_set_usage(weights_buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_cpu_buffer_type());
    std::vector<char> quantized(ggml_nbytes(weights));
    ggml_quantize_chunk(weights->type, t.weights, quantized.data(), 0, t.channels, t.depth, nullptr);
    ggml_backend_tensor_set(weights, quantized.data(), 0, quantized.size());
    std::memcpy(activations->data, t.activations, ggml_nbytes(activations));
    std::memset(result->data, 0xFF, ggml_nbytes(result));
    const bool done = ggml_backend_dev_supports_op(device, result) && ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS;
    std::memcpy(out, result->data, ggml_nbytes(result));
    ggml_backend_buffer_free(weights_buffer), ggml_backend_buffer_free(buffer);
    ggml_free(held), ggml_free(ctx);
    return done;
}

}  // namespace paged
