/* A libnvidia-ml.so.1 for machines without an NVIDIA GPU: the functions that llamad calls, answering from a text
 * file that $NVML_SHIM_STATE names and that is read anew at every call. One record a line, fields in this order:
 *
 *   driver VERSION
 *   gpu UUID DOMAIN:BUS TOTAL RESERVED FREE DISPLAY MIG NAME...
 *   slice GPU_INDEX PLACE UUID TOTAL FREE NAME...         one slice of a GPU with MIG = 1
 *   process GPU_INDEX PID BYTES                           a compute process; BYTES -1: not told
 *   graphics GPU_INDEX PID BYTES                          a process that draws
 *   fail FUNCTION CODE UNIT                               what a function returns for the UNIT-th `gpu` or `slice`
 *                                                         line of the file; -1: for all of them
 *   xid SERIAL GPU_INDEX CODE                             a fault, told once to who has registered for it: serials grow
 *   hang FUNCTION                                         it does not return until this line is gone
 *   garbled                                               texts that are no UTF-8
 *
 * Build: cc -shared -fPIC -o libnvidia-ml.so.1 nvml_shim.c     with -DOLD: a driver of before 510
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, TIMEOUT = 10, MAX = 64, PLACES = 7 };

typedef unsigned long long u64;

struct unit { /* a GPU or a slice */
    char uuid[96], name[96];
    unsigned domain, bus, display, mig;
    u64 total, reserved, free;
    int parent, place; /* parent is -1 for a GPU */
};

struct process { int gpu; unsigned pid; long long bytes; int draws; };
struct failure { char function[64]; int code, unit; };
struct xid { int serial, gpu; u64 code; };

/* What the file said, for each thread by itself: the real library may be called by several at once. */
static __thread struct unit units[MAX];
static __thread struct process processes[MAX];
static __thread struct failure failures[MAX];
static __thread struct xid xids[MAX];
static __thread int n_units, n_processes, n_failures, n_xids, garbled;
static __thread char driver[80], hanging[64];
static int is_open; /* how often; as the real one, it is closed when as many have closed it as opened it */
static int told, registered[MAX];

static void take(char *line) {
    char rest[96] = "";
    struct unit u = {.parent = -1};
    struct process p = {0};
    struct failure f;
    struct xid x;
    if (sscanf(line, "driver %79s", driver) == 1 || sscanf(line, "hang %63s", hanging) == 1)
        return;
    if (strncmp(line, "garbled", 7) == 0)
        garbled = 1;
    if (sscanf(line, "gpu %95s %x:%x %llu %llu %llu %u %u %95[^\n]", u.uuid, &u.domain, &u.bus, &u.total, &u.reserved,
               &u.free, &u.display, &u.mig, rest) == 9 ||
        sscanf(line, "slice %d %d %95s %llu %llu %95[^\n]", &u.parent, &u.place, u.uuid, &u.total, &u.free, rest) == 6) {
        memcpy(u.name, rest, sizeof rest);
        if (n_units < MAX)
            units[n_units++] = u;
    } else if (sscanf(line, "fail %63s %d %d", f.function, &f.code, &f.unit) == 3) {
        if (n_failures < MAX)
            failures[n_failures++] = f;
    } else if (sscanf(line, "xid %d %d %llu", &x.serial, &x.gpu, &x.code) == 3) {
        if (n_xids < MAX)
            xids[n_xids++] = x;
    } else if ((sscanf(line, "process %d %u %lld", &p.gpu, &p.pid, &p.bytes) == 3 ||
                (p.draws = sscanf(line, "graphics %d %u %lld", &p.gpu, &p.pid, &p.bytes) == 3)) && n_processes < MAX) {
        processes[n_processes++] = p;
    }
}

static void load(void) {
    char line[512];
    const char *path = getenv("NVML_SHIM_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    n_units = n_processes = n_failures = n_xids = garbled = 0;
    strcpy(driver, "0.0");
    hanging[0] = 0;
    while (file && fgets(line, sizeof line, file))
        take(line);
    if (file)
        fclose(file);
}

/* What `function` is to return for `unit` (NULL: none) before it does anything else: OK to go on. */
static int begin(const char *function, const struct unit *unit) {
    load();
    while (strcmp(hanging, function) == 0) {
        usleep(5000);
        load();
    }
    for (int i = 0; i < n_failures; i++)
        if (strcmp(failures[i].function, function) == 0 &&
            (failures[i].unit < 0 || (unit && &units[failures[i].unit] == unit)))
            return failures[i].code;
    return is_open || strncmp(function, "nvmlInit", 8) == 0 ? OK : UNINITIALIZED;
}

#define BEGIN(unit) do { int code = begin(__func__, unit); if (code != OK) return code; } while (0)

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
    BEGIN(NULL);
    __atomic_add_fetch(&is_open, 1, __ATOMIC_SEQ_CST);
    return OK;
}

int nvmlShutdown(void) {
    BEGIN(NULL);
    __atomic_sub_fetch(&is_open, 1, __ATOMIC_SEQ_CST);
    return OK;
}

const char *nvmlErrorString(int code) {
    static char text[40];
    snprintf(text, sizeof text, "shim error %d", code);
    return text;
}

static int give(char *text, unsigned size, const char *value) {
    snprintf(text, size, "%s%s", garbled ? "\xff\xfe" : "", value);
    return OK;
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    BEGIN(NULL);
    return give(text, size, driver);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    BEGIN(NULL);
    *count = 0;
    for (int i = 0; i < n_units; i++)
        *count += units[i].parent < 0;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct unit **handle) {
    load();
    *handle = gpu((int)index);
    BEGIN(*handle);
    return *handle ? OK : INVALID;
}

int nvmlDeviceGetUUID(struct unit *handle, char *text, unsigned size) {
    BEGIN(handle);
    return give(text, size, handle->uuid);
}

int nvmlDeviceGetName(struct unit *handle, char *text, unsigned size) {
    BEGIN(handle);
    return give(text, size, handle->name);
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, sub_id; char bus_id[32]; };

int nvmlDeviceGetPciInfo_v3(struct unit *handle, struct pci *info) {
    BEGIN(handle);
    memset(info, 0, sizeof *info);
    info->domain = handle->domain;
    info->bus = handle->bus;
    snprintf(info->bus_id, sizeof info->bus_id, "%08X:%02X:00.0", handle->domain, handle->bus);
    return OK;
}

struct memory_v1 { u64 total, free, used; };

int nvmlDeviceGetMemoryInfo(struct unit *handle, struct memory_v1 *memory) {
    BEGIN(handle);
    memory->total = handle->total;
    memory->free = handle->free;
    memory->used = handle->total - handle->free; /* with the driver's reserve */
    return OK;
}

int nvmlDeviceGetDisplayActive(struct unit *handle, unsigned *active) {
    BEGIN(handle);
    *active = handle->display;
    return handle->parent < 0 ? OK : NOT_SUPPORTED;
}

struct process_info { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; };

static int list(struct unit *handle, int draws, unsigned *count, struct process_info *infos) {
    unsigned room = *count, found = 0;
    for (int i = 0; i < n_processes; i++) {
        if (handle->parent >= 0 || processes[i].gpu != gpu_index(handle) || processes[i].draws != draws)
            continue;
        if (infos && found < room)
            infos[found] = (struct process_info){processes[i].pid, (u64)processes[i].bytes, 0, 0};
        found++;
    }
    *count = found;
    return found > room ? SMALL : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v2(struct unit *handle, unsigned *count, struct process_info *infos) {
    BEGIN(handle);
    return list(handle, 0, count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(struct unit *handle, unsigned *count, struct process_info *infos) {
    BEGIN(handle);
    return list(handle, 1, count, infos);
}

struct event { struct unit *device; unsigned long type, data; unsigned gpu_instance, compute_instance; };

int nvmlEventSetCreate(void **set) {
    BEGIN(NULL);
    memset(registered, 0, sizeof registered);
    *set = registered;
    return OK;
}

int nvmlEventSetFree(void *set) {
    (void)set;
    BEGIN(NULL);
    return OK;
}

int nvmlDeviceRegisterEvents(struct unit *handle, u64 types, void *set) {
    (void)set;
    BEGIN(handle);
    registered[gpu_index(handle)] = types == 8;
    return OK;
}

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned ms) {
    (void)set;
    for (unsigned waited = 0;; waited += 10) {
        BEGIN(NULL);
        for (int i = 0; i < n_xids; i++)
            if (xids[i].serial > told && registered[xids[i].gpu]) {
                told = xids[i].serial;
                *event = (struct event){gpu(xids[i].gpu), 8, (unsigned long)xids[i].code, 0, 0};
                return OK;
            }
        if (waited >= ms)
            return TIMEOUT;
        usleep(10000);
    }
}

#ifndef OLD
struct memory { unsigned version; u64 total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo_v2(struct unit *handle, struct memory *memory) {
    BEGIN(handle);
    if (memory->version != 0x02000028)
        return 25;
    memory->total = handle->total;
    memory->reserved = handle->reserved;
    memory->free = handle->free;
    memory->used = handle->total - handle->reserved - handle->free;
    return OK;
}

int nvmlDeviceGetMigMode(struct unit *handle, unsigned *current, unsigned *pending) {
    BEGIN(handle);
    *current = *pending = handle->mig;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(struct unit *handle, unsigned *count) {
    BEGIN(handle);
    *count = PLACES;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct unit *handle, unsigned place, struct unit **slice) {
    load();
    *slice = NULL;
    for (int i = 0; i < n_units; i++)
        if (units[i].parent == gpu_index(handle) && units[i].place == (int)place)
            *slice = &units[i];
    BEGIN(*slice);
    return *slice ? OK : NOT_FOUND;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct unit *handle, unsigned *count, struct process_info *infos) {
    BEGIN(handle);
    return list(handle, 0, count, infos);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct unit *handle, unsigned *count, struct process_info *infos) {
    BEGIN(handle);
    return list(handle, 1, count, infos);
}
#endif
