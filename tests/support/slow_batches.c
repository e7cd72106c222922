/* Put in front of llama-server with LD_PRELOAD, it makes every batch cost SLOW_BATCH_MS more, whatever its size: as a
 * slow link to a device would. Many small batches are then slow however busy the machine is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

long llama_process(long a, long b, long c, long d, long e, long f) {
    static long (*real)(long, long, long, long, long, long);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "llama_process");
    const char *cost_ms = getenv("SLOW_BATCH_MS");
    if (cost_ms) usleep(1000 * atoi(cost_ms));
    return real(a, b, c, d, e, f);
}
