// The backend as ggml sees it: an ACCEL device that claims FLASH_ATTN_EXT, and MUL_MAT with weights whose types it knows,
// on host memory.
//
// The C interface at the end is all that appliance/infer/paged.py calls.
#include "attention.h"
#include "ggml_backend_abi.h"
#include "product.h"
#include "trial.h"

#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

using namespace paged;

std::atomic<bool> claims{true};     // off: every op falls through to ggml's own kernel
std::atomic<bool> free_values{false};  // on: results are zeros at no cost, to measure what the rest costs
std::atomic<bool> products{false};  // whether matrix products are claimed, too
std::atomic<unsigned> proven{0};    // bit i: the self-test found product_types()[i] right
std::atomic<bool> registered{false};
std::atomic<long long> computed{0}, multiplied{0};
std::atomic<const Kernels *> chosen{nullptr};

std::mutex refusals_lock;
std::map<std::string, long long> refusals;  // why an op was left to ggml, and how often

const Kernels * kernels_for(int key_size, int value_size) {
    const Kernels * only = chosen;
    for (const Kernels * k : kernels())
        if ((only == nullptr || k == only) && key_size % k->lanes == 0 && value_size % k->lanes == 0) return k;
    return nullptr;
}

bool type_of(const ggml_tensor * t, Type * type) {
    switch (t->type) {
        case GGML_TYPE_F32: *type = Type::F32; return true;
        case GGML_TYPE_F16: *type = Type::F16; return true;
        case GGML_TYPE_BF16: *type = Type::BF16; return true;
        case GGML_TYPE_Q8_0: *type = Type::Q8_0; return true;
        default: return false;
    }
}

// Why ggml's own kernel must compute the op; nullptr where ours does, exactly.
const char * refusal(const ggml_tensor * op) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
    Type type;
    if (!claims) return "switched off";
    if (!mask || mask->type != GGML_TYPE_F16) return "no mask";
    if (mask->ne[2] != 1) return "a mask a head";
    if (q->ne[3] != 1 || k->ne[3] != 1 || mask->ne[3] != 1) return "more than one stream";
    if (mask->ne[0] != k->ne[1] || v->ne[1] != k->ne[1] || k->ne[1] % PAGE_CELLS != 0) return "cells are no whole pages";
    if (mask->ne[1] < q->ne[1]) return "a mask of fewer rows";
    if (q->type != GGML_TYPE_F32 || !type_of(k, &type) || !type_of(v, &type)) return "cache type";
    if (q->ne[2] % k->ne[2] != 0 || v->ne[2] != k->ne[2]) return "head counts";
    if (!kernels_for(int(k->ne[0]), int(v->ne[0]))) return "head size";
    if (q->nb[0] != 4 || k->nb[0] != ggml_type_size(k->type) || v->nb[0] != ggml_type_size(v->type)) return "transposed";
    if (sinks && sinks->type != GGML_TYPE_F32) return "sinks' type";
    return nullptr;
}

// ggml's CPU backend keeps weights in these buffers in layouts of its own, which product.h reads.
bool is_repacked(ggml_backend_buffer_type_t type) { return std::strcmp(ggml_backend_buft_name(type), "CPU_REPACK") == 0; }

// What can compute a product, whether or not it is claimed; nullptr where nothing here can.
const ProductType * product_of(const ggml_tensor * op) {
    const ggml_tensor *weights = op->src[0], *x = op->src[1];
    if (!weights->buffer || weights->view_src || ggml_backend_buffer_get_usage(weights->buffer) != GGML_BACKEND_BUFFER_USAGE_WEIGHTS)
        return nullptr;
    const bool repacked = is_repacked(ggml_backend_buffer_get_type(weights->buffer));
    if (!repacked && !ggml_backend_buffer_is_host(weights->buffer)) return nullptr;
    if (ggml_n_dims(weights) != 2 || !ggml_is_contiguous(weights) || weights->ne[1] % PRODUCT_CHANNELS != 0) return nullptr;
    if (x->type != GGML_TYPE_F32 || x->ne[2] != 1 || x->ne[3] != 1 || x->nb[0] != 4 || op->nb[0] != 4) return nullptr;
    for (size_t i = 0; i < product_types().size(); i++) {
        const ProductType & ours = product_types()[i];
        if (proven >> i & 1 && ours.type == weights->type && ours.repacked == repacked && weights->ne[0] % ours.depth == 0)
            return x->ne[1] >= ours.fewest_rows ? &ours : nullptr;
    }
    return nullptr;
}

// A plan, and the mask that it is of.
struct Planned {
    const void * mask = nullptr;
    size_t mask_row = 0;
    int rows = 0, cells = 0;
    Plan plan;
};

// One llama.cpp context's instance.
struct Instance {
    int threads = 1;
    bool renewed = true;                 // the next attention is the first of a new graph
    const ggml_tensor * first = nullptr;  // of the graph: each pass over it begins here
    std::vector<Planned> plans;          // those of [0, made) are of this pass
    size_t made = 0;
    ProductScratch scratch;
    std::vector<State> states;

    // Once a pass, where the mask is an input of the graph. A mask that the graph computes may be another in each layer, at
    // the same place.
    const Plan & plan(const Kernels & kernels, const ggml_tensor * mask, int rows) {
        const bool stays = mask->op == GGML_OP_NONE;
        const size_t mask_row = mask->nb[1] / 2;
        const int cells = int(mask->ne[0]);
        for (size_t i = 0; stays && i < made; i++)
            if (const Planned & p = plans[i]; p.mask == mask->data && p.mask_row == mask_row && p.rows == rows && p.cells == cells)
                return p.plan;
        if (made == plans.size()) plans.emplace_back();
        Planned & fresh = plans[made];
        made += stays;
        fresh.mask = mask->data, fresh.mask_row = mask_row, fresh.rows = rows, fresh.cells = cells;
        build_plan(kernels, (const uint16_t *) mask->data, mask_row, rows, cells, threads, fresh.plan);
        return fresh.plan;
    }

    void product(ggml_tensor * op) {
        const ggml_tensor *weights = op->src[0], *x = op->src[1];
        product_of(op)->multiply({(const char *) weights->data, (const char *) x->data, (char *) op->data, weights->nb[1], x->nb[1], op->nb[1],
                                  int(x->ne[1]), int(weights->ne[0]), int(weights->ne[1])},
                                 threads, scratch);
        multiplied++;
    }

    void attention(ggml_tensor * op) {
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3], *sinks = op->src[4];
        if (renewed) first = op;
        if (op == first) made = 0;
        renewed = false;
        if (free_values) {
            std::memset(op->data, 0, ggml_nbytes(op));
            return;
        }
        Attention a = {};
        a.q = {(const char *) q->data, q->nb[1], q->nb[2], Type::F32};
        a.k = {(const char *) k->data, k->nb[1], k->nb[2], Type::F32};
        a.v = {(const char *) v->data, v->nb[1], v->nb[2], Type::F32};
        type_of(k, &a.k.type), type_of(v, &a.v.type);
        a.out = (float *) op->data;
        a.mask = (const uint16_t *) mask->data, a.mask_row = mask->nb[1] / 2;
        a.sinks = sinks ? (const float *) sinks->data : nullptr;
        a.rows = int(q->ne[1]), a.heads = int(q->ne[2]), a.kv_heads = int(k->ne[2]);
        a.key_size = int(k->ne[0]), a.value_size = int(v->ne[0]);
        float params[3];
        std::memcpy(params, op->op_params, sizeof(params));
        a.scale = params[0], a.max_bias = params[1], a.softcap = params[2];
        const Kernels & kernels = *kernels_for(a.key_size, a.value_size);
        attend(kernels, a, plan(kernels, mask, a.rows), threads, states);
        computed++;
    }
};

const char * name_of_backend(ggml_backend_t) { return "PAGED"; }
const char * name_of_device(ggml_backend_dev_t) { return "PAGED"; }
const char * name_of_registry(ggml_backend_reg_t) { return "PAGED"; }

void release(ggml_backend_t backend) {
    delete (Instance *) backend->context;
    delete backend;
}

ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if (node->op == GGML_OP_FLASH_ATTN_EXT) ((Instance *) backend->context)->attention(node);
        if (node->op == GGML_OP_MUL_MAT) ((Instance *) backend->context)->product(node);
    }
    return GGML_STATUS_SUCCESS;
}

// ggml's scheduler calls this for every part of a new graph, before it computes any.
void renew(ggml_backend_t backend, ggml_cgraph *, void *) { ((Instance *) backend->context)->renewed = true; }

bool supports(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE: return true;
        case GGML_OP_MUL_MAT: return products && product_of(op) != nullptr;
        case GGML_OP_FLASH_ATTN_EXT: {
            const char * why = refusal(op);
            if (why) {
                const std::lock_guard<std::mutex> guard(refusals_lock);
                refusals[why]++;
            }
            return why == nullptr;
        }
        default: return false;
    }
}

void properties(ggml_backend_dev_t, ggml_backend_dev_props * props) {
    *props = {};
    props->name = "PAGED";
    props->description = "attention over pages of the unified KV cache";
    props->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
    props->caps.buffer_from_host_ptr = true;
}

extern ggml_backend_device DEVICE;
extern ggml_backend_reg REGISTRY;
ggml_guid GUID = {0xa9, 0x5e, 0x1c, 0x40, 0x77, 0x0b, 0x4d, 0x3a, 0x92, 0xe4, 0x61, 0x35, 0xfd, 0x08, 0x2c, 0xb1};

ggml_backend_t instance(ggml_backend_dev_t, const char *) {
    ggml_backend_i iface = {};
    iface.get_name = name_of_backend;
    iface.free = release;
    iface.graph_compute = compute;
    iface.graph_optimize = renew;
    return new ggml_backend{&GUID, iface, &DEVICE, new Instance};
}

void set_threads(ggml_backend_t backend, int threads) { ((Instance *) backend->context)->threads = std::max(1, threads); }

ggml_backend_device make_device() {
    ggml_backend_device device = {};
    device.reg = &REGISTRY;
    device.iface.get_name = name_of_device;
    device.iface.get_description = name_of_device;
    device.iface.get_memory = [](ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = 0; };
    device.iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; };
    device.iface.get_props = properties;
    device.iface.init_backend = instance;
    device.iface.get_buffer_type = [](ggml_backend_dev_t) { return ggml_backend_cpu_buffer_type(); };
    device.iface.buffer_from_host_ptr = [](ggml_backend_dev_t, void * ptr, size_t size, size_t) {
        return ggml_backend_cpu_buffer_from_ptr(ptr, size);
    };
    device.iface.supports_op = supports;
    device.iface.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t buft) {
        return ggml_backend_buft_is_host(buft) || is_repacked(buft);
    };
    return device;
}

ggml_backend_reg make_registry() {
    ggml_backend_reg registry = {};
    registry.api_version = GGML_BACKEND_API_VERSION;
    registry.iface.get_name = name_of_registry;
    registry.iface.get_device_count = [](ggml_backend_reg_t) -> size_t { return 1; };
    registry.iface.get_device = [](ggml_backend_reg_t, size_t) { return &DEVICE; };
    registry.iface.get_proc_address = [](ggml_backend_reg_t, const char * name) -> void * {
        return std::strcmp(name, "ggml_backend_set_n_threads") == 0 ? (void *) set_threads : nullptr;
    };
    return registry;
}

ggml_backend_device DEVICE = make_device();
ggml_backend_reg REGISTRY = make_registry();

template <class Trial> bool run_trial(const Trial & trial, bool ours, int threads, float * out) {
    ggml_backend_t backend = ours ? ggml_backend_dev_init(&DEVICE, nullptr) : ggml_backend_cpu_init();
    ours ? set_threads(backend, threads) : ggml_backend_cpu_set_n_threads(backend, threads);
    const bool done = run(trial, backend, ggml_backend_get_device(backend), out);
    ggml_backend_free(backend);
    return done;
}

// The largest difference, relative to the largest value.
float apart(const std::vector<float> & one, const std::vector<float> & other) {
    float most = 0, difference = 0;
    for (size_t i = 0; i < one.size(); i++) {
        most = std::max(most, std::fabs(one[i]));
        const float here = std::fabs(one[i] - other[i]);
        difference = std::max(difference, std::isfinite(here) ? here : INFINITY);
    }
    return difference / most;
}

// One attention by our backend and by ggml's own, through the tables that ggml calls: how far they are apart; infinite
// where ggml does not see us as we are.
float differ_from_ggml(ggml_type type, int rows) {
    constexpr int CELLS = 4 * PAGE_CELLS, SIZE = 64, KV_HEADS = 2, HEADS = 8;
    uint32_t random = 1;
    const auto next = [&] { return float(int(random = random * 1664525u + 1013904223u) >> 8) / (1 << 22); };
    std::vector<float> q(size_t(rows) * HEADS * SIZE), k(size_t(CELLS) * KV_HEADS * SIZE), v(k.size()), results[2];
    for (auto * values : {&q, &k, &v})
        for (float & x : *values) x = next();
    std::vector<uint16_t> mask(size_t(rows) * CELLS);
    for (size_t i = 0; i < mask.size(); i++) mask[i] = i % CELLS == 0 || next() > -1.0f ? 0 : 0xFC00;
    const Trial trial = {q.data(), k.data(), v.data(), mask.data(), nullptr, rows, CELLS, HEADS, KV_HEADS, SIZE, SIZE, type, type, 0.125f, 0, 0};
    for (const bool ours : {true, false}) {
        results[ours].resize(q.size());
        if (!run_trial(trial, ours, 1, results[ours].data())) return INFINITY;
    }
    return apart(results[0], results[1]);
}

// One product by our backend and by ggml's own, as above.
float product_differs_from_ggml(ggml_type type) {
    constexpr int ROWS = 11, DEPTH = 512, CHANNELS = 32;  // as little as shows every stride, as quantizing takes longest
    uint32_t random = 1;
    const auto next = [&] { return float(int(random = random * 1664525u + 1013904223u) >> 8) / (1 << 22); };
    std::vector<float> weights(size_t(DEPTH) * CHANNELS), activations(size_t(ROWS) * DEPTH), results[2];
    for (auto * values : {&weights, &activations})
        for (float & x : *values) x = next();
    const ProductTrial trial = {weights.data(), activations.data(), ROWS, DEPTH, CHANNELS, type};
    for (const bool ours : {true, false}) {
        results[ours].resize(size_t(ROWS) * CHANNELS);
        if (!run_trial(trial, ours, 1, results[ours].data())) return INFINITY;
    }
    return apart(results[0], results[1]);
}

// Which products are right here; those that are not are refused, and said so.
void prove_products() {
    products = true;
    for (size_t i = 0; i < product_types().size(); i++) {
        const ggml_type type = ggml_type(product_types()[i].type);
        proven |= 1u << i;
        if (const float off = product_differs_from_ggml(type); !(off < 1e-5f)) {
            proven &= ~(1u << i);
            const std::lock_guard<std::mutex> guard(refusals_lock);
            refusals["products of " + std::string(ggml_type_name(type)) + " are off by " + std::to_string(off)]++;
        }
    }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Registers the backend, once a process, before any context is made. "" when it is there; else why it is not.
EXPORT const char * paged_attention_register(void) {
    static std::string why;
    static std::once_flag once;
    std::call_once(once, [] {
        char text[160] = "";
        if (kernels().empty()) {
            why = "this processor has none of AVX2, AVX-512, NEON";
        } else if (std::strcmp(ggml_version(), GGML_ABI_VERSION) != 0) {
            why = std::string("ggml is ") + ggml_version() + ", and this was made for " GGML_ABI_VERSION;
        } else if (ggml_backend_cpu_reg()->api_version != GGML_BACKEND_API_VERSION) {
            why = "ggml's backends are of another version";
        } else {
            for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_F32})
                for (const int rows : {1, 24})
                    if (const float apart = differ_from_ggml(type, rows); !(apart < 0.01f)) {
                        std::snprintf(text, sizeof(text), "the self-test is off by %g (%s, %d rows)", apart, ggml_type_name(type), rows);
                        why = text;
                        return;
                    }
            prove_products();
            ggml_backend_register(&REGISTRY);
            registered = true;
        }
    });
    return why.c_str();
}

EXPORT bool paged_attention_registered(void) { return registered; }

// One attention on given numbers, by our backend or by ggml's. False where ours does not claim it.
EXPORT bool paged_attention_trial(const Trial * trial, bool ours, int threads, float * out) {
    return run_trial(*trial, ours, threads, out);
}

// Whether ops are claimed from now on, in graphs that are built from now on.
EXPORT void paged_attention_enable(bool on) { claims = on; }

// One product on given numbers, likewise.
EXPORT bool paged_attention_product_trial(const ProductTrial * trial, bool ours, int threads, float * out) {
    return run_trial(*trial, ours, threads, out);
}

// Whether matrix products are claimed, in graphs that are built from now on; they are once registered.
EXPORT void paged_attention_products(bool on) { products = on; }

// The types of weights whose products are claimed, "q4_0 q4_K", "" for none.
EXPORT const char * paged_attention_product_types(void) {
    static std::string names;
    names.clear();
    for (size_t i = 0; i < product_types().size(); i++)
        if (proven >> i & 1) names += (names.empty() ? "" : " ") + std::string(ggml_type_name(ggml_type(product_types()[i].type)));
    return names.c_str();
}

// Zeros at no cost instead of attention: what a bench compares with. Never on in service.
EXPORT void paged_attention_free(bool on) { free_values = on; }

// Only the kernels of that name ("avx2"), or the best again (""), in graphs that are built from now on. False where there
// are none.
EXPORT bool paged_attention_use(const char * name) {
    chosen = nullptr;
    if (!*name) return true;
    for (const Kernels * k : kernels())
        if (std::strcmp(k->name, name) == 0) return chosen = k, true;
    return false;
}

// Reads memory and does nothing with it: what a bench compares with.
EXPORT uint64_t paged_attention_read(const uint64_t * data, size_t bytes, int threads) {
    uint64_t sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (size_t i = 0; i < bytes / 8; i++) sum += data[i];
    return sum;
}

// The best kernels here, "" for none.
EXPORT const char * paged_attention_kernels(void) { return kernels().empty() ? "" : kernels()[0]->name; }

EXPORT long long paged_attention_computed(void) { return computed; }

EXPORT long long paged_attention_multiplied(void) { return multiplied; }

// Lines "count reason" of what was left to ggml, into a buffer; the size that all of it needs.
EXPORT size_t paged_attention_refusals(char * to, size_t size) {
    const std::lock_guard<std::mutex> guard(refusals_lock);
    std::string text;
    for (const auto & [reason, count] : refusals) text += std::to_string(count) + " " + reason + "\n";
    if (size > 0) {
        const size_t taken = std::min(size - 1, text.size());
        std::memcpy(to, text.data(), taken);
        to[taken] = 0;
    }
    return text.size() + 1;
}
