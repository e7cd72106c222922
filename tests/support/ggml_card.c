/* A card that is not there: a ggml backend with the memory rules of ggml-cuda and no memory.
 *
 * llama-server builds a model on it without loading a byte and says what it would take: alignment, row padding, f16
 * copies for flash attention, pinned host buffers, events and op offload are those of CUDA, so the figures are too. It
 * computes nothing, and what it allocates is addresses without memory behind them.
 *
 *     cc -shared -fPIC -o libcard.so ggml_card.c -lggml-base
 *     GGML_BACKEND_PATH=libcard.so LLAMAD_CARDS=CUDA0=24576,CUDA1=24576 llama-server --device CUDA0 ...
 *
 * LLAMAD_CARDS has a name and MiB a card. Interfaces are tables of functions in the order of ggml-backend-impl.h,
 * which is not installed with the headers; CARD_API_VERSION is the version of that order.
 */
#include <ggml-backend.h>
#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef CARD_API_VERSION
#define CARD_API_VERSION 3
#endif

enum { MOST_CARDS = 8, ALIGNMENT = 128, ROW_PADDING = 512, OFFLOAD_BATCH = 32, SCRATCH_ALIGNMENT = 128 };

typedef void (*any_function)(void);
enum { BUFFER_TYPE_CALLS = 8, BUFFER_CALLS = 11, BACKEND_CALLS = 16, DEVICE_CALLS = 15, REGISTRY_CALLS = 4 };

struct buffer_type {
    any_function calls[BUFFER_TYPE_CALLS];
    struct device *device;
    void *context;
};
struct buffer {
    any_function calls[BUFFER_CALLS];
    struct buffer_type *type;
    void *context;
    size_t size;
    int usage;
};
struct backend {
    void *guid;
    any_function calls[BACKEND_CALLS];
    struct device *device;
    void *context;
};
struct device {
    any_function calls[DEVICE_CALLS];
    struct registry *registry;
    void *context;
};
struct registry {
    int version;
    any_function calls[REGISTRY_CALLS];
    void *context;
};

struct card {
    char name[32];
    size_t memory;
    struct device device;
    struct buffer_type memory_type;
};

static struct card cards[MOST_CARDS];
static size_t card_count;
static struct buffer_type pinned_type;
static struct registry the_registry;

static struct card *card_of(const struct device *device) {
    return device->context;
}

/* -- buffers -------------------------------------------------------------------------------------------------- */

static const char *type_name(struct buffer_type *type) {
    return ((struct card *)type->context)->name;
}

static size_t type_alignment(struct buffer_type *type) {
    (void)type;
    return ALIGNMENT;
}

static const struct ggml_tensor *seen_through(const struct ggml_tensor *tensor) {
    return tensor->view_src ? tensor->view_src : tensor;
}

/* Kernels for many tokens want keys and values in f16: they are copied behind the result, for the whole cache. */
static size_t attention_size(const struct ggml_tensor *tensor) {
    const struct ggml_tensor *keys = tensor->src[1], *values = tensor->src[2];
    size_t end = ggml_nbytes(tensor);
    bool shared = values->view_src && (values->view_src == keys || seen_through(keys) == values->view_src) &&
                  (values->view_src == keys || values->view_offs == keys->view_offs);
    if (tensor->src[0]->ne[1] <= 2 && keys->ne[0] <= 256) {
        return end;
    }
    if (keys->type != GGML_TYPE_F16) {
        end = (end + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
        end += (size_t)ggml_nelements(keys) * 2;
    }
    if (values->type != GGML_TYPE_F16 && !shared) {
        end = (end + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
        end += (size_t)ggml_nelements(values) * 2;
    }
    return end;
}

static size_t type_size_of(struct buffer_type *type, const struct ggml_tensor *tensor) {
    (void)type;
    if (tensor->op == GGML_OP_FLASH_ATTN_EXT) {
        return attention_size(tensor);
    }
    size_t size = ggml_nbytes(tensor);
    int64_t over = tensor->ne[0] % ROW_PADDING;
    if (ggml_is_quantized(tensor->type) && over) {
        size += ggml_row_size(tensor->type, ROW_PADDING - over);
    }
    return size;
}

static void buffer_free(struct buffer *buffer) {
    munmap(buffer->context, buffer->size);
}

static void *buffer_base(struct buffer *buffer) {
    return buffer->context;
}

static void nothing(void) {
}

struct buffer_interface {
    any_function calls[BUFFER_CALLS];
};

struct buffer *ggml_backend_buffer_init(struct buffer_type *type, struct buffer_interface calls, void *context, size_t size);

static struct buffer *type_allocate(struct buffer_type *type, size_t size) {
    struct buffer_interface calls = {{(any_function)buffer_free, (any_function)buffer_base}};
    void *base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    calls.calls[3] = calls.calls[4] = calls.calls[5] = nothing; /* memset, set and get of a tensor */
    calls.calls[9] = nothing;                                   /* clear */
    return ggml_backend_buffer_init(type, calls, base, size);
}

/* -- devices -------------------------------------------------------------------------------------------------- */

static const char *device_name(struct device *device) {
    return card_of(device)->name;
}

static const char *device_description(struct device *device) {
    (void)device;
    return "a card that is not there";
}

static void device_memory(struct device *device, size_t *free_bytes, size_t *total_bytes) {
    *free_bytes = *total_bytes = card_of(device)->memory;
}

static int device_type(struct device *device) {
    (void)device;
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static void device_props(struct device *device, struct ggml_backend_dev_props *props) {
    memset(props, 0, sizeof *props);
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
    device_memory(device, &props->memory_free, &props->memory_total);
    props->caps.async = true;
    props->caps.host_buffer = true;
    props->caps.events = true;
    props->caps.mmap_support = true;
}

static struct buffer_type *device_buffer_type(struct device *device) {
    return &card_of(device)->memory_type;
}

static struct buffer_type *device_pinned_type(struct device *device) {
    (void)device;
    return &pinned_type;
}

static bool attention_supported(const struct ggml_tensor *op) {
    const struct ggml_tensor *query = op->src[0], *keys = op->src[1], *values = op->src[2];
    int64_t ratio = query->ne[2] / keys->ne[2], size = keys->ne[0];
    bool grouped = ratio >= 2 && op->src[3] && keys->ne[1] % 256 == 0;
    switch (size) {
        case 40: case 64: case 72: case 80: case 96: case 112: case 128: case 256:
            return values->ne[0] == size;
        case 192:
            return values->ne[0] == 128 && grouped && ratio % 8 == 0;
        case 320:
            return values->ne[0] == 256 && grouped && ratio % 32 == 0;
        case 512:
            return values->ne[0] == 512 && grouped;
        case 576:
            return values->ne[0] == 512 && grouped;
        default:
            return false;
    }
}

static bool rows_supported(const struct ggml_tensor *op) {
    enum ggml_type type = op->src[0]->type;
    return type != GGML_TYPE_NVFP4 && ((type != GGML_TYPE_IQ4_NL && type != GGML_TYPE_MXFP4) || op->src[0]->ne[0] % 256 == 0);
}

static bool scan_supported(const struct ggml_tensor *op) {
    const struct ggml_tensor *state = op->src[0];
    if (op->src[3]->ne[0] == 1) {
        return (state->ne[0] == 96 || state->ne[0] == 128 || state->ne[0] == 256) && state->ne[1] % 16 == 0;
    }
    return state->ne[0] == 16 && state->ne[1] == 1 && state->ne[2] % 128 == 0 && op->src[4]->ne[1] == 1;
}

static bool is_cards(const struct buffer_type *type) {
    return type->calls[0] == (any_function)type_name;
}

static bool device_supports(struct device *device, const struct ggml_tensor *op) {
    for (int index = 0; index < GGML_MAX_SRC; index++) {
        const struct ggml_tensor *source = op->src[index];
        if (source && source->buffer) {
            const struct buffer_type *type = ((struct buffer *)source->buffer)->type;
            if (is_cards(type) && type->device != device) {
                return false;
            }
        }
    }
    switch (op->op) {
        case GGML_OP_FLASH_ATTN_EXT:
            return attention_supported(op);
        case GGML_OP_GET_ROWS:
            return rows_supported(op);
        case GGML_OP_SSM_SCAN:
            return scan_supported(op);
        case GGML_OP_SSM_CONV:
            return op->src[0]->ne[1] % 128 == 0;
        default:
            return true;
    }
}

static bool device_supports_type(struct device *device, struct buffer_type *type) {
    return is_cards(type) && type->device == device;
}

static bool device_offloads(struct device *device, const struct ggml_tensor *op) {
    (void)device;
    switch (op->op) {
        case GGML_OP_GET_ROWS:
            return false;
        case GGML_OP_MUL_MAT:
            return op->ne[1] >= OFFLOAD_BATCH;
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:
            return op->ne[2] >= OFFLOAD_BATCH;
        default:
            return ggml_nrows(op) >= OFFLOAD_BATCH;
    }
}

static void *event_new(struct device *device) {
    void **event = calloc(2, sizeof *event);
    event[0] = device;
    return event;
}

static void event_free(struct device *device, void *event) {
    (void)device;
    free(event);
}

/* -- backends ------------------------------------------------------------------------------------------------- */

static const char *backend_name(struct backend *backend) {
    return device_name(backend->device);
}

static void backend_free(struct backend *backend) {
    free(backend);
}

static int backend_compute(void) {
    return GGML_STATUS_FAILED;
}

static struct backend *device_backend(struct device *device, const char *parameters) {
    static uint8_t guid[16] = "a card not there";
    struct backend *backend = calloc(1, sizeof *backend);
    (void)parameters;
    backend->guid = guid;
    backend->device = device;
    backend->calls[0] = (any_function)backend_name;
    backend->calls[1] = (any_function)backend_free;
    backend->calls[2] = nothing;  /* set_tensor_async */
    backend->calls[3] = nothing;  /* get_tensor_async */
    backend->calls[7] = nothing;  /* synchronize */
    backend->calls[12] = (any_function)backend_compute;
    backend->calls[13] = nothing; /* event_record */
    backend->calls[14] = nothing; /* event_wait */
    return backend;
}

/* -- registry ------------------------------------------------------------------------------------------------- */

static const char *registry_name(struct registry *registry) {
    (void)registry;
    return "CUDA";
}

static size_t registry_count(struct registry *registry) {
    (void)registry;
    return card_count;
}

static struct device *registry_device(struct registry *registry, size_t index) {
    (void)registry;
    return &cards[index].device;
}

static void *registry_address(struct registry *registry, const char *name) {
    (void)registry;
    (void)name;
    return NULL;
}

static const char *pinned_name(struct buffer_type *type) {
    (void)type;
    return "CUDA_Host";
}

static bool is_host(struct buffer_type *type) {
    (void)type;
    return true;
}

static size_t host_alignment(struct buffer_type *type) {
    (void)type;
    return 32;
}

static const any_function device_calls[DEVICE_CALLS] = {
    (any_function)device_name,        (any_function)device_description, (any_function)device_memory,
    (any_function)device_type,        (any_function)device_props,       (any_function)device_backend,
    (any_function)device_buffer_type, (any_function)device_pinned_type, NULL,
    (any_function)device_supports,    (any_function)device_supports_type, (any_function)device_offloads,
    (any_function)event_new,          (any_function)event_free,         nothing,
};
static const any_function memory_calls[BUFFER_TYPE_CALLS] = {
    (any_function)type_name, (any_function)type_allocate, NULL, (any_function)type_alignment, NULL, (any_function)type_size_of, NULL, NULL,
};
static const any_function pinned_calls[BUFFER_TYPE_CALLS] = {
    (any_function)pinned_name, (any_function)type_allocate, NULL, (any_function)host_alignment, NULL, NULL, NULL, (any_function)is_host,
};
static const any_function registry_calls[REGISTRY_CALLS] = {
    (any_function)registry_name, (any_function)registry_count, (any_function)registry_device, (any_function)registry_address,
};

static void read_cards(void) {
    const char *text = getenv("LLAMAD_CARDS");
    char copy[512];
    snprintf(copy, sizeof copy, "%s", text ? text : "CUDA0=24576");
    for (char *word = strtok(copy, ","); word && card_count < MOST_CARDS; word = strtok(NULL, ",")) {
        struct card *card = &cards[card_count++];
        char *size = strchr(word, '=');
        snprintf(card->name, sizeof card->name, "%.*s", size ? (int)(size - word) : 31, word);
        card->memory = (size ? strtoull(size + 1, NULL, 10) : 24576) << 20;
        memcpy(card->device.calls, device_calls, sizeof device_calls);
        card->device.registry = &the_registry;
        card->device.context = card;
        memcpy(card->memory_type.calls, memory_calls, sizeof memory_calls);
        card->memory_type.device = &card->device;
        card->memory_type.context = card;
    }
    memcpy(pinned_type.calls, pinned_calls, sizeof pinned_calls);
    pinned_type.device = &cards[0].device;
}

struct registry *ggml_backend_init(void) {
    if (!card_count) {
        read_cards();
        the_registry.version = CARD_API_VERSION;
        memcpy(the_registry.calls, registry_calls, sizeof registry_calls);
    }
    return &the_registry;
}
