// The part of ggml's internal header ggml-backend-impl.h that a backend has to fill in, which the wheel of
// llama-cpp-python doesn't carry. Copied in layout from ggml 0.25.3 (MIT licence); functions that stay null have no types
// here. backend.cpp refuses to register with any other version.
#pragma once

#include "ggml-backend.h"

#define GGML_ABI_VERSION "0.25.3"
#define GGML_BACKEND_API_VERSION 2

extern "C" {

struct ggml_backend_i {
    const char * (*get_name)(ggml_backend_t backend);
    void (*free)(ggml_backend_t backend);
    void * set_tensor_async;
    void * get_tensor_async;
    void * set_tensor_2d_async;
    void * get_tensor_2d_async;
    void * cpy_tensor_async;
    void * synchronize;
    void * graph_plan_create;
    void * graph_plan_free;
    void * graph_plan_update;
    void * graph_plan_compute;
    enum ggml_status (*graph_compute)(ggml_backend_t backend, struct ggml_cgraph * graph);
    void * event_record;
    void * event_wait;
    void (*graph_optimize)(ggml_backend_t backend, struct ggml_cgraph * graph, void * params);
};

struct ggml_backend {
    ggml_guid_t guid;
    struct ggml_backend_i iface;
    ggml_backend_dev_t device;
    void * context;
};

struct ggml_backend_device_i {
    const char * (*get_name)(ggml_backend_dev_t device);
    const char * (*get_description)(ggml_backend_dev_t device);
    void (*get_memory)(ggml_backend_dev_t device, size_t * free, size_t * total);
    enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t device);
    void (*get_props)(ggml_backend_dev_t device, struct ggml_backend_dev_props * props);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t device, const char * params);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t device);
    void * get_host_buffer_type;
    ggml_backend_buffer_t (*buffer_from_host_ptr)(ggml_backend_dev_t device, void * ptr, size_t size, size_t max_tensor_size);
    bool (*supports_op)(ggml_backend_dev_t device, const struct ggml_tensor * op);
    bool (*supports_buft)(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft);
    void * offload_op;
    void * event_new;
    void * event_free;
    void * event_synchronize;
};

struct ggml_backend_device {
    struct ggml_backend_device_i iface;
    ggml_backend_reg_t reg;
    void * context;
};

struct ggml_backend_reg_i {
    const char * (*get_name)(ggml_backend_reg_t reg);
    size_t (*get_device_count)(ggml_backend_reg_t reg);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t reg, size_t index);
    void * (*get_proc_address)(ggml_backend_reg_t reg, const char * name);
};

struct ggml_backend_reg {
    int api_version;
    struct ggml_backend_reg_i iface;
    void * context;
};
}
