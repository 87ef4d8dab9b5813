// Loads the native plugin as an engine library would, over the stub of TensorRT's headers, and runs it once.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

using namespace nvinfer1;

struct Log : ILogger {
    void log(Severity, char const* message) noexcept override { std::printf("log %s\n", message); }
};
struct Finder : ILoggerFinder {
    Log held;
    ILogger* findLogger() override { return &held; }
};

int main(int, char** arguments) {  // the library, the address of q or of the packed tensor, "packed" or "apart"
    bool const packed = arguments[3][0] == 'p';
    int const count = packed ? 1 : 3;
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return std::printf("%s\n", dlerror()), 1;
    auto creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    Finder finder;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    int32_t known = 0;
    auto creator = static_cast<IPluginCreatorV3One*>(creators(known)[0]);
    std::printf("%d %s %s %s\n", known, creator->getPluginNamespace(), creator->getPluginName(), creator->getPluginVersion());

    Dims const dims = packed ? Dims{3, {2, 1025, 3 * 1152}} : Dims{4, {2, 1025, 36, 32}};
    PluginTensorDesc const half{dims, DataType::kHALF, TensorFormat::kLINEAR, 1};
    DynamicPluginTensorDesc dynamic{half, dims, dims, dims};
    dynamic.max.d[1] = 4096;
    DynamicPluginTensorDesc tensors[4] = {dynamic, dynamic, dynamic, dynamic};
    tensors[count].desc.dims.d[dims.nbDims - 1] = packed ? 1152 + 16 : 64;
    auto plugin = creator->createPlugin("attention", nullptr, TensorRTPhase::kBUILD);
    auto build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto made = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::printf("%d %d\n", build->supportsFormatCombination(count - 1, tensors, count, 1), build->supportsFormatCombination(count, tensors, count, 1));
    build->configurePlugin(tensors, count, tensors, 1);
    std::printf("%zu\n", build->getWorkspaceSize(tensors, count, tensors, 1));

    auto fields = made->getFieldsToSerialize();
    std::printf("%d %s %d\n", fields->nbFields, fields->fields[0].name, *static_cast<int32_t const*>(fields->fields[0].data));
    auto read = creator->createPlugin("attention", fields, TensorRTPhase::kRUNTIME);
    auto run = static_cast<IPluginV3OneRuntime*>(read->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    auto attached = run->attachToContext(nullptr);
    if (!attached) return 2;
    auto ready = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    PluginTensorDesc const inputs[3] = {half, half, half};
    ready->onShapeChange(inputs, count, inputs, 1);
    auto address = [](unsigned long at) { return reinterpret_cast<void*>(at); };
    void const* const given[3] = {address(std::strtoul(arguments[2], nullptr, 0)), address(0x20), address(0x30)};
    void* const wanted[1] = {address(0x50)};
    auto stream = static_cast<cudaStream_t>(address(0x77));
    return ready->enqueue(inputs, inputs, given, wanted, address(0x40), stream) ? 3 : 0;
}
