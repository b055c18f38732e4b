/* A stand-in for libnvidia-ml.so.1, so that tests drive the real pynvml without a GPU.
 *
 * What it proves: symbol names, argument and struct layouts, error mapping, and what a program
 * does when a call is denied, fails, hangs or is missing. What it does not prove: anything about
 * a real device; the power model below is a caricature.
 *
 * All device state lives in a file named by NVML_SHIM_STATE, mapped shared. Locks and limits thus
 * outlive the process that set them, as they do in a driver, and a test reads and changes the truth
 * from outside. The layout is mirrored in nvml_shim.py: change both, and raise SHIM_VERSION.
 * Every member is naturally aligned and padding is spelled out; the sizes are asserted.
 *
 * A call marked NVML_CALL is exported. To build a library that lacks one, as an older driver would,
 * compile with -DnvmlName=omitted_nvmlName: the macro renames the symbol out of pynvml's reach.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SHIM_MAGIC 0x4c4d564eu /* "NVML" in memory */
#define SHIM_VERSION 1u
#define MAX_GPUS 16
#define MAX_SCRIPT 64
#define MAX_FAULTS 64
#define MAX_WRITES 256
#define CALL_NAME 64

enum { /* nvmlReturn_t, the codes used here */
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
};

enum { /* nvmlClocksEventReason* */
    REASON_IDLE = 0x1,
    REASON_SW_POWER_CAP = 0x4,
    REASON_HW_SLOWDOWN = 0x8,
    REASON_HW_POWER_BRAKE = 0x80,
};

struct gpu {
    char uuid[96];
    char name[96];
    /* The workload and the device, written by the test. */
    uint32_t demand_mw; /* draw at sm_max_mhz with no limit */
    uint32_t idle_mw;
    uint32_t utilisation; /* percent; 0 = idle */
    uint32_t memory_utilisation;
    int32_t temp_c;
    int32_t mem_temp_c;
    uint32_t sm_max_mhz;
    uint32_t sm_min_mhz;
    uint32_t sm_step_mhz;
    uint32_t mem_mhz;
    uint32_t mem_max_mhz;
    uint32_t limit_min_mw;
    uint32_t limit_max_mw;
    uint32_t limit_default_mw;
    int32_t shutdown_c;
    int32_t slowdown_c;
    int32_t mem_max_c;
    int32_t gpu_max_c;
    uint32_t average_mw; /* 0 = the average equals the instant draw */
    uint32_t module_mw;  /* 0 = scope not supported */
    uint32_t memory_mw;  /* 0 = scope not supported */
    uint32_t lost;
    uint32_t no_permission;
    uint32_t brake;
    uint32_t extra_reasons; /* or'ed into the event reasons */
    uint32_t script_length;
    uint32_t script_next;
    uint32_t script_mw[MAX_SCRIPT];
    /* The settings, written by the calls. */
    uint32_t lock_min_mhz; /* 0 = no lock */
    uint32_t lock_max_mhz;
    uint32_t limit_mw;
    uint32_t persistence;
    /* Arrivals, whatever was answered. */
    uint32_t set_limit_calls;
    uint32_t set_lock_calls;
    uint32_t reset_lock_calls;
    uint32_t power_reads;
    uint32_t reserved;
    uint64_t energy_mj;
    int64_t timestamp_offset_us; /* added to the timestamps of field values */
};

struct fault {
    char call[CALL_NAME]; /* "nvmlX", or "nvmlDeviceGetFieldValues/185" for one field */
    int32_t gpu;          /* -1 = any */
    int32_t code;
    int32_t times;   /* still to come; 0 = unused or spent, -1 = for ever */
    int32_t hang_ms; /* before the answer; -1 = until cleared */
    int32_t applies; /* a setter takes effect whatever it answers */
    uint32_t hits;
};

struct write {
    char call[CALL_NAME];
    int32_t gpu;
    uint32_t first;
    uint32_t second;
    int32_t code;
};

struct state {
    uint32_t magic;
    uint32_t version;
    uint32_t size;
    uint32_t gpu_count;
    char driver_version[80];
    uint32_t write_count; /* of all; the ring keeps the last MAX_WRITES */
    uint32_t init_calls;
    struct fault faults[MAX_FAULTS];
    struct write writes[MAX_WRITES];
    struct gpu gpus[MAX_GPUS];
};

_Static_assert(sizeof(struct gpu) == 192 + 4 * (27 + MAX_SCRIPT + 9) + 16, "struct gpu has hidden padding");
_Static_assert(sizeof(struct fault) == CALL_NAME + 24, "struct fault has hidden padding");
_Static_assert(sizeof(struct write) == CALL_NAME + 16, "struct write has hidden padding");
_Static_assert(sizeof(struct state) == 104 + MAX_FAULTS * sizeof(struct fault) + MAX_WRITES * sizeof(struct write) +
                                           MAX_GPUS * sizeof(struct gpu),
               "struct state has hidden padding");

/* What pynvml passes. */
struct utilization {
    unsigned gpu, memory;
};
struct temperature_v1 {
    unsigned version, sensor;
    int temperature;
};
struct margin_v1 {
    unsigned version;
    int margin;
};
union value {
    double d;
    unsigned u;
    unsigned long ul;
    unsigned long long ull;
    long long sll;
    int i;
    unsigned short us;
};
struct field_value {
    uint32_t id;
    uint32_t scope;
    int64_t timestamp;
    int64_t latency_us;
    unsigned type;
    int code;
    union value value;
};
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3, TYPE_SIGNED_INT = 5 };

/* A handle is an address in this array: the same in every mapping, and never dereferenced. */
typedef const char *nvmlDevice_t;
static const char handles[MAX_GPUS];

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned init_count;
static struct state *current; /* NULL when not initialised; never unmapped, a call may be inside */

#define NVML_CALL __attribute__((visibility("default"))) int

static int64_t now_us(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* ---- entering a call: faults, hangs, lost devices ---- */

struct verdict {
    int code;
    bool applies;
};

static bool take(struct fault *f) {
    int32_t left = __atomic_load_n(&f->times, __ATOMIC_ACQUIRE);
    while (left != 0) {
        if (left < 0 || __atomic_compare_exchange_n(&f->times, &left, left - 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            __atomic_add_fetch(&f->hits, 1, __ATOMIC_RELAXED);
            return true;
        }
    }
    return false;
}

static void hang(const struct fault *f) {
    const int64_t start = now_us(CLOCK_MONOTONIC);
    for (;;) {
        const int32_t ms = __atomic_load_n(&f->hang_ms, __ATOMIC_RELAXED);
        if (ms >= 0 && now_us(CLOCK_MONOTONIC) - start >= (int64_t)ms * 1000) return;
        usleep(1000);
    }
}

static struct verdict scripted(struct state *s, const char *call, int gpu) {
    for (int i = 0; i < MAX_FAULTS; i++) {
        struct fault *f = &s->faults[i];
        if (__atomic_load_n(&f->times, __ATOMIC_ACQUIRE) == 0) continue;
        if ((f->gpu != -1 && f->gpu != gpu) || strncmp(f->call, call, CALL_NAME) != 0) continue;
        if (!take(f)) continue;
        const struct verdict v = {f->code, f->applies != 0};
        if (f->hang_ms != 0) hang(f);
        return v;
    }
    return (struct verdict){OK, true};
}

static int index_of(const struct state *s, nvmlDevice_t device) {
    const uintptr_t offset = (uintptr_t)device - (uintptr_t)handles;
    return offset < s->gpu_count ? (int)offset : -1;
}

static int enter(const char *call, nvmlDevice_t device, struct state **s, struct gpu **g) {
    *s = __atomic_load_n(&current, __ATOMIC_ACQUIRE);
    if (*s == NULL) return UNINITIALIZED;
    const int i = index_of(*s, device);
    if (i < 0) return INVALID_ARGUMENT;
    *g = &(*s)->gpus[i];
    const struct verdict v = scripted(*s, call, i);
    if (v.code != OK) return v.code;
    return (*g)->lost ? GPU_IS_LOST : OK;
}

#define DEVICE_CALL(call)                                                                                                      \
    struct state *s;                                                                                                           \
    struct gpu *g;                                                                                                             \
    const int entered = enter(call, device, &s, &g);                                                                           \
    (void)s;                                                                                                                   \
    if (entered != OK) return entered

/* ---- the power model: power = idle + (demand - idle) * (clock / max)^2, held under the limit ---- */

struct operating {
    uint32_t mhz, mw, reasons;
};

static uint32_t quantised(const struct gpu *g, double mhz) {
    if (mhz <= g->sm_min_mhz) return g->sm_min_mhz;
    if (mhz >= g->sm_max_mhz) return g->sm_max_mhz;
    return g->sm_min_mhz + (uint32_t)((mhz - g->sm_min_mhz) / g->sm_step_mhz) * g->sm_step_mhz;
}

static struct operating operating(const struct gpu *g) {
    struct operating o = {0, 0, g->extra_reasons};
    const double idle = g->idle_mw, dynamic = g->demand_mw > g->idle_mw ? (double)g->demand_mw - idle : 0;
    if (g->brake) o.reasons |= REASON_HW_SLOWDOWN | REASON_HW_POWER_BRAKE;
    if (g->utilisation == 0) {
        o.reasons |= REASON_IDLE;
        o.mhz = quantised(g, g->lock_min_mhz);
        o.mw = g->idle_mw < g->limit_mw ? g->idle_mw : g->limit_mw;
        return o;
    }
    o.mhz = quantised(g, g->lock_max_mhz ? g->lock_max_mhz : g->sm_max_mhz);
    if (g->brake) { /* "reducing the core clocks by a factor of 2 or more" */
        const uint32_t braked = quantised(g, g->sm_max_mhz / 2.0);
        if (braked < o.mhz) o.mhz = braked;
    }
    const double ratio = (double)o.mhz / g->sm_max_mhz;
    const double wanted = idle + dynamic * ratio * ratio;
    if (wanted > g->limit_mw) {
        o.reasons |= REASON_SW_POWER_CAP;
        o.mw = g->limit_mw;
        o.mhz = g->limit_mw > g->idle_mw ? quantised(g, g->sm_max_mhz * sqrt((g->limit_mw - idle) / dynamic)) : g->sm_min_mhz;
    } else {
        o.mw = (uint32_t)(wanted + 0.5);
    }
    return o;
}

static uint32_t instant_mw(struct gpu *g) {
    __atomic_add_fetch(&g->power_reads, 1, __ATOMIC_RELAXED);
    const uint32_t length = g->script_length;
    if (length == 0) return operating(g).mw;
    const uint32_t next = __atomic_fetch_add(&g->script_next, 1, __ATOMIC_RELAXED);
    return g->script_mw[next < length ? next : length - 1];
}

static uint32_t average_of(const struct gpu *g, uint32_t instant) { return g->average_mw ? g->average_mw : instant; }

/* ---- library ---- */

static int map_state(struct state **out) {
    const char *path = getenv("NVML_SHIM_STATE");
    const int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return DRIVER_NOT_LOADED;
    struct stat st;
    void *p = MAP_FAILED;
    if (fstat(fd, &st) == 0 && st.st_size == (off_t)sizeof(struct state))
        p = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) return LIB_RM_VERSION_MISMATCH;
    struct state *s = p;
    if (s->magic != SHIM_MAGIC || s->version != SHIM_VERSION || s->size != sizeof(struct state) || s->gpu_count > MAX_GPUS) {
        munmap(p, sizeof(struct state));
        return LIB_RM_VERSION_MISMATCH;
    }
    *out = s;
    return OK;
}

static int init(const char *call) {
    pthread_mutex_lock(&init_lock);
    struct state *s = current;
    int code = s ? OK : map_state(&s);
    if (code == OK) {
        __atomic_add_fetch(&s->init_calls, 1, __ATOMIC_RELAXED);
        code = scripted(s, call, -1).code;
        if (code == OK) {
            __atomic_store_n(&current, s, __ATOMIC_RELEASE);
            init_count++;
        }
    }
    pthread_mutex_unlock(&init_lock);
    return code;
}

NVML_CALL nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return init("nvmlInitWithFlags");
}

NVML_CALL nvmlInit_v2(void) { return init("nvmlInit_v2"); }

NVML_CALL nvmlShutdown(void) {
    struct state *s = __atomic_load_n(&current, __ATOMIC_ACQUIRE);
    if (s == NULL) return UNINITIALIZED;
    const int code = scripted(s, "nvmlShutdown", -1).code;
    if (code != OK) return code;
    pthread_mutex_lock(&init_lock);
    if (init_count > 0 && --init_count == 0) __atomic_store_n(&current, NULL, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&init_lock);
    return OK;
}

/* Not NVML's: lets a test end whatever it left initialised. */
__attribute__((visibility("default"))) void nvml_shim_forget(void) {
    pthread_mutex_lock(&init_lock);
    init_count = 0;
    __atomic_store_n(&current, NULL, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&init_lock);
}

/* Not NVML's: the sizes that nvml_shim.py must agree with. */
__attribute__((visibility("default"))) unsigned nvml_shim_size(int what) {
    const unsigned sizes[] = {sizeof(struct state), sizeof(struct gpu), sizeof(struct fault), sizeof(struct write)};
    return what >= 0 && what < 4 ? sizes[what] : 0;
}

__attribute__((visibility("default"))) const char *nvmlErrorString(int code) {
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

static int copy_text(const char *text, char *out, unsigned length) {
    if (out == NULL) return INVALID_ARGUMENT;
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return OK;
}

NVML_CALL nvmlSystemGetDriverVersion(char *out, unsigned length) {
    struct state *s = __atomic_load_n(&current, __ATOMIC_ACQUIRE);
    if (s == NULL) return UNINITIALIZED;
    const int code = scripted(s, "nvmlSystemGetDriverVersion", -1).code;
    return code != OK ? code : copy_text(s->driver_version, out, length);
}

NVML_CALL nvmlSystemGetNVMLVersion(char *out, unsigned length) {
    struct state *s = __atomic_load_n(&current, __ATOMIC_ACQUIRE);
    if (s == NULL) return UNINITIALIZED;
    const int code = scripted(s, "nvmlSystemGetNVMLVersion", -1).code;
    if (code != OK) return code;
    char version[96];
    snprintf(version, sizeof version, "13.%.80s", s->driver_version);
    return copy_text(version, out, length);
}

/* ---- finding devices ---- */

NVML_CALL nvmlDeviceGetCount_v2(unsigned *count) {
    struct state *s = __atomic_load_n(&current, __ATOMIC_ACQUIRE);
    if (s == NULL) return UNINITIALIZED;
    const int code = scripted(s, "nvmlDeviceGetCount_v2", -1).code;
    if (code == OK) *count = s->gpu_count;
    return code;
}

NVML_CALL nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
    if (index >= MAX_GPUS) return INVALID_ARGUMENT;
    const nvmlDevice_t device = &handles[index];
    DEVICE_CALL("nvmlDeviceGetHandleByIndex_v2");
    *out = device;
    return OK;
}

NVML_CALL nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *out) {
    struct state *all = __atomic_load_n(&current, __ATOMIC_ACQUIRE);
    if (all == NULL) return UNINITIALIZED;
    if (uuid == NULL) return INVALID_ARGUMENT;
    for (unsigned i = 0; i < all->gpu_count; i++) {
        if (strncmp(all->gpus[i].uuid, uuid, sizeof all->gpus[i].uuid) != 0) continue;
        const nvmlDevice_t device = &handles[i];
        DEVICE_CALL("nvmlDeviceGetHandleByUUID");
        *out = device;
        return OK;
    }
    return NOT_FOUND;
}

NVML_CALL nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned length) {
    DEVICE_CALL("nvmlDeviceGetName");
    return copy_text(g->name, out, length);
}

NVML_CALL nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned length) {
    DEVICE_CALL("nvmlDeviceGetUUID");
    return copy_text(g->uuid, out, length);
}

NVML_CALL nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetIndex");
    *out = (unsigned)index_of(s, device);
    return OK;
}

/* ---- reading ---- */

NVML_CALL nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetPowerUsage");
    *out = average_of(g, instant_mw(g)); /* a 1 s average on Ampere and newer, A100 apart */
    return OK;
}

NVML_CALL nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *out) {
    DEVICE_CALL("nvmlDeviceGetTotalEnergyConsumption");
    *out = g->energy_mj;
    return OK;
}

NVML_CALL nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetTemperature");
    if (sensor != 0) return INVALID_ARGUMENT;
    *out = (unsigned)g->temp_c;
    return OK;
}

NVML_CALL nvmlDeviceGetTemperatureV(nvmlDevice_t device, struct temperature_v1 *t) {
    DEVICE_CALL("nvmlDeviceGetTemperatureV");
    if (t->version != (sizeof *t | 1u << 24)) return ARGUMENT_VERSION_MISMATCH;
    if (t->sensor != 0) return INVALID_ARGUMENT;
    t->temperature = g->temp_c;
    return OK;
}

NVML_CALL nvmlDeviceGetMarginTemperature(nvmlDevice_t device, struct margin_v1 *m) {
    DEVICE_CALL("nvmlDeviceGetMarginTemperature");
    if (m->version != (sizeof *m | 1u << 24)) return ARGUMENT_VERSION_MISMATCH;
    m->margin = g->gpu_max_c - g->temp_c;
    return OK;
}

NVML_CALL nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned which, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetTemperatureThreshold");
    const int32_t thresholds[] = {g->shutdown_c, g->slowdown_c, g->mem_max_c, g->gpu_max_c};
    if (which > 7) return INVALID_ARGUMENT;
    if (which > 3) return NOT_SUPPORTED;
    *out = (unsigned)thresholds[which];
    return OK;
}

NVML_CALL nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned type, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetClockInfo");
    if (type > 3) return INVALID_ARGUMENT;
    if (type == 3) return NOT_SUPPORTED; /* the video clock is not modelled */
    *out = type == 2 ? g->mem_mhz : operating(g).mhz;
    return OK;
}

NVML_CALL nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned type, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetMaxClockInfo");
    if (type > 3) return INVALID_ARGUMENT;
    if (type == 3) return NOT_SUPPORTED;
    *out = type == 2 ? g->mem_max_mhz : g->sm_max_mhz;
    return OK;
}

NVML_CALL nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned *count, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetSupportedMemoryClocks");
    const unsigned given = *count;
    *count = 1;
    if (out == NULL || given < 1) return INSUFFICIENT_SIZE;
    out[0] = g->mem_max_mhz;
    return OK;
}

NVML_CALL nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned mem_mhz, unsigned *count, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetSupportedGraphicsClocks");
    if (mem_mhz != g->mem_max_mhz) return NOT_FOUND;
    const unsigned given = *count;
    *count = (g->sm_max_mhz - g->sm_min_mhz) / g->sm_step_mhz + 1;
    if (out == NULL || given < *count) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++) out[i] = g->sm_min_mhz + (*count - 1 - i) * g->sm_step_mhz; /* descending */
    return OK;
}

NVML_CALL nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct utilization *out) {
    DEVICE_CALL("nvmlDeviceGetUtilizationRates");
    out->gpu = g->utilisation;
    out->memory = g->memory_utilisation;
    return OK;
}

NVML_CALL nvmlDeviceGetPerformanceState(nvmlDevice_t device, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetPerformanceState");
    *out = 0; /* data-centre parts stay in P0 */
    return OK;
}

NVML_CALL nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *out) {
    DEVICE_CALL("nvmlDeviceGetCurrentClocksEventReasons");
    *out = operating(g).reasons;
    return OK;
}

NVML_CALL nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *out) {
    DEVICE_CALL("nvmlDeviceGetCurrentClocksThrottleReasons");
    *out = operating(g).reasons;
    return OK;
}

NVML_CALL nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetPowerManagementLimit");
    *out = g->limit_mw;
    return OK;
}

NVML_CALL nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetEnforcedPowerLimit");
    *out = g->limit_mw;
    return OK;
}

NVML_CALL nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetPowerManagementDefaultLimit");
    *out = g->limit_default_mw;
    return OK;
}

NVML_CALL nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned *low, unsigned *high) {
    DEVICE_CALL("nvmlDeviceGetPowerManagementLimitConstraints");
    *low = g->limit_min_mw;
    *high = g->limit_max_mw;
    return OK;
}

NVML_CALL nvmlDeviceGetPersistenceMode(nvmlDevice_t device, unsigned *out) {
    DEVICE_CALL("nvmlDeviceGetPersistenceMode");
    *out = g->persistence;
    return OK;
}

/* One field. The value types of 193-196 are our reading of the header (a margin can be negative);
 * a caller must go by `type`. They are relative to the maximum operating temperature, as nvidia-smi
 * prints them ("GPU Shutdown T.Limit Temp: -8 C"). */
static void read_field(struct gpu *g, struct field_value *f, uint32_t instant) {
    const bool power = f->id == 185 || f->id == 186;
    f->type = TYPE_UNSIGNED_INT;
    f->code = OK;
    if (f->scope > 3) {
        f->code = INVALID_ARGUMENT;
        return;
    }
    if (f->scope != 0 && !power) {
        f->code = NOT_SUPPORTED;
        return;
    }
    switch (f->id) {
    case 82: f->value.u = (unsigned)g->mem_temp_c; break;
    case 83:
        f->type = TYPE_UNSIGNED_LONG_LONG;
        f->value.ull = g->energy_mj;
        break;
    case 185:
    case 186: {
        const uint32_t by_scope[] = {f->id == 185 ? average_of(g, instant) : instant, g->module_mw, g->memory_mw, 0};
        f->value.u = by_scope[f->scope];
        if (f->scope != 0 && f->value.u == 0) f->code = NOT_SUPPORTED;
        break;
    }
    case 187: f->value.u = g->limit_min_mw; break;
    case 188: f->value.u = g->limit_max_mw; break;
    case 189: f->value.u = g->limit_default_mw; break;
    case 190:
    case 192: f->value.u = g->limit_mw; break;
    case 193:
    case 194:
    case 195:
    case 196: {
        const int32_t margins[] = {g->gpu_max_c - g->shutdown_c, g->gpu_max_c - g->slowdown_c, 0, 0};
        f->type = TYPE_SIGNED_INT;
        f->value.i = margins[f->id - 193];
        break;
    }
    default: f->code = NOT_SUPPORTED;
    }
}

NVML_CALL nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, struct field_value *fields) {
    DEVICE_CALL("nvmlDeviceGetFieldValues");
    if (count <= 0 || fields == NULL) return INVALID_ARGUMENT;
    bool power = false;
    for (int i = 0; i < count; i++) power = power || ((fields[i].id == 185 || fields[i].id == 186) && fields[i].scope == 0);
    const uint32_t instant = power ? instant_mw(g) : 0; /* one step of the script a call, not a field */
    for (int i = 0; i < count; i++) {
        struct field_value *f = &fields[i];
        char call[CALL_NAME];
        snprintf(call, sizeof call, "nvmlDeviceGetFieldValues/%u", f->id);
        f->timestamp = now_us(CLOCK_REALTIME) + g->timestamp_offset_us;
        f->latency_us = 0;
        f->value.ull = 0;
        read_field(g, f, instant);
        const int code = scripted(s, call, index_of(s, device)).code;
        if (code != OK) f->code = code;
    }
    return OK;
}

/* ---- writing ---- */

enum setting { LIMIT, LOCK, RESET_LOCK, PERSISTENCE };

static int refusal(const struct gpu *g, enum setting what, unsigned first, unsigned second) {
    if (g->lost) return GPU_IS_LOST;
    if (g->no_permission) return NO_PERMISSION;
    if (what == LIMIT && (first < g->limit_min_mw || first > g->limit_max_mw)) return INVALID_ARGUMENT;
    /* The symbolic limits (0xffffff01, 0xffffff02) are not modelled. */
    if (what == LOCK && (first > second || second == 0 || second >= 0xffffff00u)) return INVALID_ARGUMENT;
    if (what == PERSISTENCE && first > 1) return INVALID_ARGUMENT;
    return OK;
}

static void put(struct gpu *g, enum setting what, unsigned first, unsigned second) {
    switch (what) {
    case LIMIT: g->limit_mw = first; break;
    case PERSISTENCE: g->persistence = first; break;
    case RESET_LOCK: first = second = 0; /* fall through */
    case LOCK:
        g->lock_min_mhz = first;
        g->lock_max_mhz = second;
    }
}

static int set(const char *call, nvmlDevice_t device, enum setting what, unsigned first, unsigned second) {
    struct state *s = __atomic_load_n(&current, __ATOMIC_ACQUIRE);
    if (s == NULL) return UNINITIALIZED;
    const int i = index_of(s, device);
    if (i < 0) return INVALID_ARGUMENT;
    struct gpu *g = &s->gpus[i];
    if (what != PERSISTENCE) {
        uint32_t *calls = what == LIMIT ? &g->set_limit_calls : what == LOCK ? &g->set_lock_calls : &g->reset_lock_calls;
        __atomic_add_fetch(calls, 1, __ATOMIC_RELAXED);
    }
    const struct verdict v = scripted(s, call, i);
    const int refused = refusal(g, what, first, second);
    if (v.applies && refused == OK) put(g, what, first, second);
    const int code = v.code != OK || !v.applies ? v.code : refused;

    const uint32_t n = __atomic_fetch_add(&s->write_count, 1, __ATOMIC_ACQ_REL);
    struct write *w = &s->writes[n % MAX_WRITES];
    snprintf(w->call, sizeof w->call, "%s", call);
    w->gpu = i;
    w->first = first;
    w->second = second;
    w->code = code;
    return code;
}

NVML_CALL nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned mw) {
    return set("nvmlDeviceSetPowerManagementLimit", device, LIMIT, mw, 0);
}

NVML_CALL nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned min_mhz, unsigned max_mhz) {
    return set("nvmlDeviceSetGpuLockedClocks", device, LOCK, min_mhz, max_mhz);
}

NVML_CALL nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device) {
    return set("nvmlDeviceResetGpuLockedClocks", device, RESET_LOCK, 0, 0);
}

NVML_CALL nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned mode) {
    return set("nvmlDeviceSetPersistenceMode", device, PERSISTENCE, mode, 0);
}
