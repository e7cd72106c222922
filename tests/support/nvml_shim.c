/* A libnvidia-ml.so.1 for machines without an NVIDIA GPU: the functions that llamad calls, answering from a text
 * file that $NVML_SHIM_STATE names and that is read anew at every call. One record a line, fields in this order:
 *
 *   init CODE                                             what nvmlInit returns (0 without this line)
 *   driver VERSION
 *   gpu UUID PCI_BUS TOTAL RESERVED FREE DISPLAY MIG HANDLE_CODE MEMORY_CODE NAME...
 *   slice GPU_INDEX PLACE UUID TOTAL FREE NAME...         one slice of a GPU with MIG = 1
 *   process GPU_INDEX PID BYTES                           a compute process; BYTES -1: not told
 *
 * Build: cc -shared -fPIC -o libnvidia-ml.so.1 nvml_shim.c
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, MAX = 16, PLACES = 7 };

typedef unsigned long long u64;

struct unit { /* a GPU or a slice */
    char uuid[96], name[96];
    unsigned bus, display, mig;
    int handle_code, memory_code;
    u64 total, reserved, free;
    int parent, place; /* parent is -1 for a GPU */
};

struct process { int gpu; unsigned pid; long long bytes; };

static struct unit units[MAX];
static struct process processes[MAX];
static int n_units, n_processes, init_code, is_open;
static char driver[80];

static void take(char *line) {
    char rest[96] = "";
    struct unit u = {.parent = -1};
    struct process p;
    if (sscanf(line, "init %d", &init_code) == 1 || sscanf(line, "driver %79s", driver) == 1)
        return;
    if (sscanf(line, "gpu %95s %x %llu %llu %llu %u %u %d %d %95[^\n]", u.uuid, &u.bus, &u.total, &u.reserved, &u.free,
               &u.display, &u.mig, &u.handle_code, &u.memory_code, rest) == 10 ||
        sscanf(line, "slice %d %d %95s %llu %llu %95[^\n]", &u.parent, &u.place, u.uuid, &u.total, &u.free, rest) == 6) {
        memcpy(u.name, rest, sizeof rest);
        if (n_units < MAX)
            units[n_units++] = u;
    } else if (sscanf(line, "process %d %u %lld", &p.gpu, &p.pid, &p.bytes) == 3 && n_processes < MAX) {
        processes[n_processes++] = p;
    }
}

static void load(void) {
    char line[512];
    const char *path = getenv("NVML_SHIM_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    n_units = n_processes = init_code = 0;
    strcpy(driver, "0.0");
    while (file && fgets(line, sizeof line, file))
        take(line);
    if (file)
        fclose(file);
}

static struct unit *gpu(int wanted) {
    for (int i = 0; i < n_units; i++)
        if (units[i].parent < 0 && wanted-- == 0)
            return &units[i];
    return NULL;
}

static int gpu_index(const struct unit *unit) {
    int index = 0;
    for (int i = 0; i < n_units && &units[i] != unit; i++)
        index += units[i].parent < 0;
    return index;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    load();
    is_open = init_code == OK;
    return init_code;
}

int nvmlShutdown(void) {
    if (!is_open)
        return UNINITIALIZED;
    is_open = 0;
    return OK;
}

const char *nvmlErrorString(int code) {
    static char text[40];
    snprintf(text, sizeof text, "shim error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    if (!is_open)
        return UNINITIALIZED;
    load();
    snprintf(text, size, "%s", driver);
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    load();
    *count = 0;
    for (int i = 0; i < n_units; i++)
        *count += units[i].parent < 0;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct unit **handle) {
    load();
    *handle = gpu((int)index);
    return *handle ? (*handle)->handle_code : INVALID;
}

int nvmlDeviceGetUUID(struct unit *handle, char *text, unsigned size) {
    snprintf(text, size, "%s", handle->uuid);
    return OK;
}

int nvmlDeviceGetName(struct unit *handle, char *text, unsigned size) {
    snprintf(text, size, "%s", handle->name);
    return OK;
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, sub_id; char bus_id[32]; };

int nvmlDeviceGetPciInfo_v3(struct unit *handle, struct pci *info) {
    memset(info, 0, sizeof *info);
    info->bus = handle->bus;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", handle->bus);
    return OK;
}

struct memory { unsigned version; u64 total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo_v2(struct unit *handle, struct memory *memory) {
    if (memory->version != 0x02000028)
        return 25;
    memory->total = handle->total;
    memory->reserved = handle->reserved;
    memory->free = handle->free;
    memory->used = handle->total - handle->reserved - handle->free;
    return handle->memory_code;
}

struct memory_v1 { u64 total, free, used; };

int nvmlDeviceGetMemoryInfo(struct unit *handle, struct memory_v1 *memory) {
    memory->total = handle->total;
    memory->free = handle->free;
    memory->used = handle->total - handle->free;
    return OK;
}

int nvmlDeviceGetDisplayActive(struct unit *handle, unsigned *active) {
    *active = handle->display;
    return handle->parent < 0 ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(struct unit *handle, unsigned *current, unsigned *pending) {
    *current = *pending = handle->mig;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(struct unit *handle, unsigned *count) {
    (void)handle;
    *count = PLACES;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct unit *handle, unsigned place, struct unit **slice) {
    for (int i = 0; i < n_units; i++)
        if (units[i].parent == gpu_index(handle) && units[i].place == (int)place) {
            *slice = &units[i];
            return OK;
        }
    return NOT_FOUND;
}

struct process_info { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; };

int nvmlDeviceGetComputeRunningProcesses_v3(struct unit *handle, unsigned *count, struct process_info *infos) {
    unsigned room = *count, found = 0;
    for (int i = 0; i < n_processes; i++) {
        if (handle->parent >= 0 || processes[i].gpu != gpu_index(handle))
            continue;
        if (infos && found < room)
            infos[found] = (struct process_info){processes[i].pid, (u64)processes[i].bytes, 0, 0};
        found++;
    }
    *count = found;
    return found > room ? SMALL : OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct unit *handle, unsigned *count, struct process_info *infos) {
    return nvmlDeviceGetComputeRunningProcesses_v3(handle, count, infos);
}
