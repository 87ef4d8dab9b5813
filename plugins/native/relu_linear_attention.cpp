// sana::ReluLinearAttention as an IPluginV3 plugin of TensorRT and TensorRT-RTX, for apps without Python.
//
// It does what plugins/sana_plugins/tensorrt does and reads the same engines: two launches of the shipped PTX through
// the CUDA driver, the sums between them in workspace, programs loaded before `enqueue`, so that a CUDA graph can be
// captured. Load it with `getPluginRegistry()->loadLibrary(path)` before an engine is built or deserialised.

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#define SANA_EXPORT __declspec(dllexport)
#else
#include <dlfcn.h>
#define SANA_EXPORT __attribute__((visibility("default")))
#endif

namespace {

struct Kernel {
    char const* kernel;
    char const* element;
    int target;  // the oldest compute capability that runs it
    char const* entry;
    unsigned threads;
    unsigned shared;
    unsigned block;
    unsigned char const* ptx;
};

#include "kernels.h"

using namespace nvinfer1;

constexpr char kName[] = "ReluLinearAttention", kVersion[] = "1", kNamespace[] = "sana", kField[] = "element_type";
constexpr int32_t kHeadDim = 32, kMostSplits = 8, kSplitBlock = 128, kUnknown = -1;
constexpr size_t kState = sizeof(float) * (kHeadDim + 1) * kHeadDim;  // one split's sums
constexpr uintptr_t kAlignment = 16;
constexpr int kSuccess = 0, kMajor = 75, kMinor = 76;

ILoggerFinder* gLoggers = nullptr;

// Says why, once, where the app's log is; returns the failure that the caller hands on.
int32_t refuse(std::string const& why) {
    ILogger* log = gLoggers ? gLoggers->findLogger() : nullptr;
    if (log) log->log(ILogger::Severity::kERROR, ("sana::ReluLinearAttention: " + why).c_str());
    return 1;
}

// The CUDA driver, opened when it is first needed, so that engines are built on machines without one.
struct Driver {
    int (*currentContext)(void**) = nullptr;
    int (*contextDevice)(int*) = nullptr;
    int (*attribute)(int*, int, int) = nullptr;
    int (*loadModule)(void**, void const*) = nullptr;
    int (*function)(void**, void*, char const*) = nullptr;
    int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                  void**) = nullptr;
    bool found = false;

    Driver() {
#ifdef _WIN32
        HMODULE library = LoadLibraryA("nvcuda.dll");
        auto find = [&](char const* name) { return reinterpret_cast<void*>(GetProcAddress(library, name)); };
#else
        void* library = dlopen("libcuda.so.1", RTLD_NOW);
        auto find = [&](char const* name) { return dlsym(library, name); };
#endif
        if (!library) return;
        bind(currentContext, find("cuCtxGetCurrent"));
        bind(contextDevice, find("cuCtxGetDevice"));
        bind(attribute, find("cuDeviceGetAttribute"));
        bind(loadModule, find("cuModuleLoadData"));
        bind(function, find("cuModuleGetFunction"));
        bind(launch, find("cuLaunchKernel"));
        found = currentContext && contextDevice && attribute && loadModule && function && launch;
    }

    template <typename Call>
    static void bind(Call& call, void* address) {
        std::memcpy(&call, &address, sizeof call);
    }
};

Driver& driver() {
    static Driver opened;
    return opened;
}

struct Program {
    Kernel const* kernel = nullptr;
    void* function = nullptr;
};

struct Programs {
    Program summing, applying;
};

char const* elementName(DataType type) {
    switch (type) {
        case DataType::kHALF: return "fp16";
        case DataType::kBF16: return "bf16";
        case DataType::kFLOAT: return "fp32";
        default: return nullptr;
    }
}

// The newest version of a kernel that the card runs.
bool load(Program& program, char const* kernel, char const* element, int capability) {
    for (Kernel const& row : kKernels) {
        bool const fits = !std::strcmp(row.kernel, kernel) && !std::strcmp(row.element, element);
        if (fits && row.target <= capability && (!program.kernel || row.target > program.kernel->target))
            program.kernel = &row;
    }
    void* module = nullptr;
    return program.kernel && driver().loadModule(&module, program.kernel->ptx) == kSuccess &&
           driver().function(&program.function, module, program.kernel->entry) == kSuccess;
}

// Both programs for an element type, loaded once for each CUDA context; null, with the reason logged, if that fails.
Programs const* programs(DataType type) {
    static std::mutex guard;
    static std::map<std::pair<void*, DataType>, Programs> loaded;
    std::lock_guard<std::mutex> lock(guard);
    void* context = nullptr;
    int device = 0, major = 0, minor = 0;
    char const* element = elementName(type);
    if (!driver().found || driver().currentContext(&context) != kSuccess || driver().contextDevice(&device) != kSuccess)
        return refuse("no CUDA driver or no context here; install the NVIDIA driver"), nullptr;
    auto const held = loaded.find({context, type});
    if (held != loaded.end()) return &held->second;
    driver().attribute(&major, kMajor, device);
    driver().attribute(&minor, kMinor, device);
    Programs found;
    int const capability = 10 * major + minor;
    if (!element || !load(found.summing, "sum_key_values", element, capability) ||
        !load(found.applying, "apply_queries", element, capability))
        return refuse("no program for this element type and card; use an engine without the plugin"), nullptr;
    return &(loaded[{context, type}] = found);
}

constexpr int32_t ceilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Three addresses, five numbers, and two addresses of the compiler's own that the kernels never follow.
int32_t start(Program const& program, int32_t gridX, int32_t gridY, void* const (&addresses)[3],
              int32_t const (&numbers)[5], cudaStream_t stream) {
    void* values[3] = {addresses[0], addresses[1], addresses[2]};
    int32_t sizes[5];
    std::copy(numbers, numbers + 5, sizes);
    void* none = nullptr;
    void* parameters[] = {&values[0], &values[1], &values[2], &sizes[0], &sizes[1],
                          &sizes[2],  &sizes[3],  &sizes[4],  &none,     &none};
    int const status = driver().launch(program.function, gridX, gridY, 1, program.kernel->threads, 1, 1,
                                       program.kernel->shared, stream, parameters, nullptr);
    return status == kSuccess ? 0 : refuse("the CUDA driver does not start a kernel, status " + std::to_string(status));
}

// What the first input's dimensions tell: q is (batch, tokens, heads, 32), a packed tensor (batch, tokens, 3 · heads · 32).
struct Sizes {
    bool packed, known;
    int32_t tokens, heads, pairs, row;

    explicit Sizes(Dims const& dims)
        : packed(dims.nbDims == 3),
          known(packed || dims.d[3] == kHeadDim),
          tokens(static_cast<int32_t>(dims.d[1])),
          heads(static_cast<int32_t>(packed ? dims.d[2] / (3 * kHeadDim) : dims.d[2])),
          pairs(static_cast<int32_t>(dims.d[0]) * heads),
          row(heads * kHeadDim) {}
};

class Attention final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    explicit Attention(int32_t elementType) : mElementType(elementType) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType kind) noexcept override {
        switch (kind) {
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
            default: return static_cast<IPluginV3OneCore*>(this);
        }
    }

    IPluginV3* clone() noexcept override { return new Attention(mElementType); }

    char const* getPluginName() const noexcept override { return kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }
    int32_t getNbOutputs() const noexcept override { return 1; }

    int32_t getOutputDataTypes(DataType* outputs, int32_t, DataType const* inputs, int32_t) const noexcept override {
        outputs[0] = inputs[0];
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t count, DimsExprs const*, int32_t, DimsExprs* outputs, int32_t,
                            IExprBuilder& builder) noexcept override {
        outputs[0] = inputs[0];
        if (count == 1)
            outputs[0].d[2] = builder.operation(DimensionOperation::kFLOOR_DIV, *inputs[0].d[2], *builder.constant(3));
        return 0;
    }

    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t count,
                                   int32_t) noexcept override {
        PluginTensorDesc const &here = tensors[position].desc, &first = tensors[0].desc;
        bool const packed = count == 1;
        int64_t const last = here.dims.d[packed ? 2 : 3], multiple = (packed && position == 0 ? 3 : 1) * kHeadDim;
        bool const width = last == -1 || (packed ? last % multiple == 0 : last == kHeadDim);
        return here.format == TensorFormat::kLINEAR && here.type == first.type && elementName(here.type) &&
               here.dims.nbDims == (packed ? 3 : 4) && width;
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const* inputs, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) noexcept override {
        mElementType = static_cast<int32_t>(inputs[0].desc.type);
        return 0;
    }

    // For the most tokens there can be: a shorter sequence can be cut into more splits than the longest.
    size_t getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) const noexcept override {
        Sizes const most(inputs[0].max);
        return static_cast<size_t>(most.pairs) * std::min(kMostSplits, ceilDiv(most.tokens, kSplitBlock)) * kState;
    }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        mField = PluginField(kField, &mElementType, PluginFieldType::kINT32, 1);
        mFields = PluginFieldCollection{1, &mField};
        return &mFields;
    }

    // A copy whose programs are loaded: nothing may be loaded while a CUDA graph is captured.
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override {
        if (mElementType != kUnknown && !programs(static_cast<DataType>(mElementType))) return nullptr;
        return clone();
    }

    int32_t onShapeChange(PluginTensorDesc const* inputs, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
        return programs(inputs[0].type) ? 0 : 1;
    }

    int32_t enqueue(PluginTensorDesc const* described, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        Sizes const sizes(described[0].dims);
        if (!sizes.known) return refuse("heads of this width have no kernel; use an engine without the plugin");
        size_t const third = static_cast<size_t>(sizes.row) * (described[0].type == DataType::kFLOAT ? 4 : 2);
        void* q = address(inputs[0], 0);
        void* k = sizes.packed ? address(inputs[0], third) : address(inputs[1], 0);
        void* v = sizes.packed ? address(inputs[0], 2 * third) : address(inputs[2], 0);
        void* out = outputs[0];
        for (void* each : {q, k, v, out, workspace})
            if (!each || reinterpret_cast<uintptr_t>(each) % kAlignment)
                return refuse("the engine handed over memory that is not aligned to 16 bytes");
        Programs const* loaded = programs(described[0].type);
        if (!loaded) return 1;
        int32_t const tokens = sizes.tokens, heads = sizes.heads, pairs = sizes.pairs, row = sizes.row;
        int32_t const rowIn = sizes.packed ? 3 * row : row;
        int32_t const chunk = kSplitBlock * ceilDiv(ceilDiv(tokens, kSplitBlock), kMostSplits);
        int32_t const splits = ceilDiv(tokens, chunk);
        int32_t const blocks = ceilDiv(tokens, static_cast<int32_t>(loaded->applying.kernel->block));
        int32_t const failed =
            start(loaded->summing, pairs, splits, {k, v, workspace}, {tokens, chunk, heads, rowIn, rowIn}, stream);
        return failed ? failed
                      : start(loaded->applying, blocks, pairs, {q, workspace, out}, {tokens, splits, heads, rowIn, row},
                              stream);
    }

    int32_t setTactic(int32_t) noexcept override { return 0; }

private:
    static void* address(void const* pointer, size_t offset) {
        return const_cast<char*>(static_cast<char const*>(pointer)) + offset;
    }

    int32_t mElementType;
    PluginField mField{};
    PluginFieldCollection mFields{};
};

class AttentionCreator final : public IPluginCreatorV3One {
public:
    IPluginV3* createPlugin(char const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept override {
        int32_t elementType = kUnknown;
        for (int32_t i = 0; fields && i < fields->nbFields; ++i)
            if (!std::strcmp(fields->fields[i].name, kField) && fields->fields[i].data)
                std::memcpy(&elementType, fields->fields[i].data, sizeof elementType);
        return new Attention(elementType);
    }

    PluginFieldCollection const* getFieldNames() noexcept override {
        static PluginFieldCollection const none{0, nullptr};
        return &none;
    }

    char const* getPluginName() const noexcept override { return kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace

extern "C" SANA_EXPORT void setLoggerFinder(ILoggerFinder* finder) { gLoggers = finder; }

extern "C" SANA_EXPORT IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static AttentionCreator creator;
    static IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}
