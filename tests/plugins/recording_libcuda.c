// A stand-in for the CUDA driver that records what it is asked to launch. It computes nothing and needs no GPU:
// it shows that arguments, grids and programs reach the driver through cuda-bindings as the kernels expect them.
// SANA_CAPABILITY is the compute capability it claims (86), SANA_RECORD the file to which it writes a line a call.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
static char program[64];

static FILE* record(void) { return fopen(getenv("SANA_RECORD"), "a"); }
static int capability(void) { return atoi(getenv("SANA_CAPABILITY")); }

static Result init(unsigned flags) { (void)flags; return 0; }
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
    *handle = (void*)(strcmp(name, "sum_key_values") == 0 ? 0x3000L : 0x4000L);
    return 0;
}

// Both kernels take three pointers, five 32-bit numbers and two pointers that must be null.
static Result launch(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                     unsigned shared, void* stream, void** parameters, void** extra) {
    FILE* file = record();
    fprintf(file, "launch %p %u %u %u %u %u %u %u %p", handle, gx, gy, gz, bx, by, bz, shared, stream);
    for (int i = 0; i < 3; i++) fprintf(file, " %p", *(void**)parameters[i]);
    for (int i = 3; i < 8; i++) fprintf(file, " %d", *(int*)parameters[i]);
    for (int i = 8; i < 10; i++) fprintf(file, " %d", *(void**)parameters[i] == NULL);
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
    {"cuLaunchKernel", launch}, {"cuGetProcAddress", procedure},
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
