// A stand-in for the CUDA driver that records what it is asked for. It computes nothing and needs no GPU: it shows that
// arguments, grids, programs and copies reach the driver through cuda-bindings as they are meant. Its card's memory is
// this process's own.
// SANA_CAPABILITY is the compute capability it claims (86; 0: there is no card), SANA_CUDA the version of CUDA (13000),
// SANA_RECORD the file to which it writes a line a call.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
static char program[64];

static FILE* record(void) { return fopen(getenv("SANA_RECORD"), "a"); }
static int capability(void) { return atoi(getenv("SANA_CAPABILITY")); }

static void note(const char* what) {
    FILE* file = record();
    fprintf(file, "%s\n", what);
    fclose(file);
}

static Result init(unsigned flags) { (void)flags; return capability() ? 0 : 100; }
static Result driverVersion(int* version) { *version = atoi(getenv("SANA_CUDA")); return 0; }
static Result device(int* device, int ordinal) { *device = ordinal; return 0; }
static Result retain(void** context, int device) { (void)device; *context = (void*)0x1000; return 0; }
static Result enter(void* context) { return context == (void*)0x1000 ? 0 : 201; }
static Result allocate(unsigned long long* address, size_t size) {
    *address = size > 1 << 20 ? 0 : (unsigned long long)malloc(size);
    return *address ? 0 : 2;  // CUDA_ERROR_OUT_OF_MEMORY
}
static Result release(unsigned long long address) { free((void*)address); note("free"); return 0; }
static Result upload(unsigned long long to, const void* from, size_t size, void* stream) {
    memcpy((void*)to, from, size);
    return stream == (void*)0x5000 ? 0 : 400;
}
static Result download(void* to, unsigned long long from, size_t size, void* stream) {
    memcpy(to, (void*)from, size);
    return stream == (void*)0x5000 ? 0 : 400;
}
static Result newStream(void** stream, unsigned flags) { *stream = (void*)0x5000; return flags == 1 ? 0 : 1; }
static Result endStream(void* stream) { (void)stream; note("drop stream"); return 0; }
static Result wait(void* stream) { (void)stream; note("wait"); return 0; }
static Result beginCapture(void* stream, int mode) { (void)stream; note("begin"); return mode == 1 ? 0 : 1; }
static Result endCapture(void* stream, void** graph) { (void)stream; note("end"); *graph = (void*)0x6000; return 0; }
static Result instantiate(void** ready, void* graph, unsigned long long flags) {
    *ready = (void*)0x7000;
    return graph == (void*)0x6000 && !flags ? 0 : 1;
}
static Result dropGraph(void* graph) { note("drop graph"); return graph == (void*)0x6000 ? 0 : 1; }
static Result dropReady(void* ready) { note("drop ready"); return ready == (void*)0x7000 ? 0 : 1; }
static Result launchGraph(void* ready, void* stream) { (void)stream; note("start"); return ready == (void*)0x7000 ? 0 : 1; }
static Result currentContext(void** context) { *context = (void*)0x1000; return 0; }
static Result contextDevice(int* device) { *device = 0; return 0; }

static Result attribute(int* value, int which, int device) {
    (void)device;
    *value = which == 75 ? capability() / 10 : which == 76 ? capability() % 10 : -1;
    return 0;
}

static Result loadModule(void** module, const void* image) {
    const char* target = strstr((const char*)image, ".target ");
    FILE* file = record();
    fprintf(file, "load %.5s %zu\n", target + 8, strlen((const char*)image));
    fclose(file);
    *module = (void*)0x2000;
    return 0;
}

static Result function(void** handle, void* module, const char* name) {
    (void)module;
    snprintf(program, sizeof program, "%s", name);
    *handle = (void*)(strcmp(name, "sum_key_values") == 0 ? 0x3000L : strcmp(name, "apply_queries") == 0 ? 0x4000L : 0x8000L);
    return 0;
}

// The attention's two kernels take three pointers and five 32-bit numbers, the third kernel takes five and four; then
// come two pointers that must be null.
static Result launch(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                     unsigned shared, void* stream, void** parameters, void** extra) {
    int const pointers = handle == (void*)0x8000 ? 5 : 3, all = handle == (void*)0x8000 ? 9 : 8;
    FILE* file = record();
    fprintf(file, "launch %p %u %u %u %u %u %u %u %p", handle, gx, gy, gz, bx, by, bz, shared, stream);
    for (int i = 0; i < pointers; i++) fprintf(file, " %p", *(void**)parameters[i]);
    for (int i = pointers; i < all; i++) fprintf(file, " %d", *(int*)parameters[i]);
    for (int i = all; i < all + 2; i++) fprintf(file, " %d", *(void**)parameters[i] == NULL);
    fprintf(file, " %d\n", extra == NULL);
    fclose(file);
    return 0;
}

static Result unknown(void) { return 801; }  // CUDA_ERROR_NOT_SUPPORTED

struct Entry { const char* name; void* address; };
static Result procedure(const char*, void**, int, unsigned long long, int*);
static const struct Entry entries[] = {
    {"cuInit", init}, {"cuCtxGetCurrent", currentContext}, {"cuCtxGetDevice", contextDevice},
    {"cuDeviceGetAttribute", attribute}, {"cuModuleLoadData", loadModule}, {"cuModuleGetFunction", function},
    {"cuLaunchKernel", launch}, {"cuGetProcAddress", procedure}, {"cuDriverGetVersion", driverVersion},
    {"cuDeviceGet", device}, {"cuDevicePrimaryCtxRetain", retain}, {"cuCtxSetCurrent", enter},
    {"cuMemAlloc", allocate}, {"cuMemFree", release}, {"cuMemcpyHtoDAsync", upload}, {"cuMemcpyDtoHAsync", download},
    {"cuStreamCreate", newStream}, {"cuStreamDestroy", endStream}, {"cuStreamSynchronize", wait},
    {"cuStreamBeginCapture", beginCapture}, {"cuStreamEndCapture", endCapture},
    {"cuGraphInstantiate", instantiate}, {"cuGraphInstantiateWithFlags", instantiate}, {"cuGraphDestroy", dropGraph},
    {"cuGraphExecDestroy", dropReady}, {"cuGraphLaunch", launchGraph},
};

static Result procedure(const char* name, void** address, int version, unsigned long long flags, int* status) {
    (void)version; (void)flags;
    *address = unknown;
    if (status) *status = 0;
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (strcmp(name, entries[i].name) == 0) *address = entries[i].address;
    return 0;
}

Result cuGetProcAddress_v2(const char* name, void** address, int version, unsigned long long flags, int* status) {
    return procedure(name, address, version, flags, status);
}
Result cuGetProcAddress(const char* name, void** address, int version, unsigned long long flags) {
    return procedure(name, address, version, flags, NULL);
}
Result cuInit(unsigned flags) { return init(flags); }

// Programs that open the library themselves find these by name.
Result cuCtxGetCurrent(void** context) { return currentContext(context); }
Result cuCtxGetDevice(int* device) { return contextDevice(device); }
Result cuDeviceGetAttribute(int* value, int which, int device) { return attribute(value, which, device); }
Result cuModuleLoadData(void** module, const void* image) { return loadModule(module, image); }
Result cuModuleGetFunction(void** handle, void* module, const char* name) { return function(handle, module, name); }
Result cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** parameters, void** extra) {
    return launch(handle, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra);
}
