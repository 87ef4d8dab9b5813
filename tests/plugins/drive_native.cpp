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

int main(int, char** arguments) {  // the library, then the address of q
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return std::printf("%s\n", dlerror()), 1;
    auto creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    Finder finder;
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
    int32_t count = 0;
    auto creator = static_cast<IPluginCreatorV3One*>(creators(count)[0]);
    std::printf("%d %s %s %s\n", count, creator->getPluginNamespace(), creator->getPluginName(), creator->getPluginVersion());

    PluginTensorDesc const half{{4, {2, 1025, 36, 32}}, DataType::kHALF, TensorFormat::kLINEAR, 1};
    DynamicPluginTensorDesc const dynamic{half, half.dims, {4, {2, 4096, 36, 32}}, half.dims};
    DynamicPluginTensorDesc tensors[4] = {dynamic, dynamic, dynamic, dynamic};
    tensors[3].desc.dims.d[3] = 64;
    auto plugin = creator->createPlugin("attention", nullptr, TensorRTPhase::kBUILD);
    auto build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto made = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::printf("%d %d\n", build->supportsFormatCombination(2, tensors, 3, 1), build->supportsFormatCombination(3, tensors, 3, 1));
    build->configurePlugin(tensors, 3, tensors, 1);
    std::printf("%zu\n", build->getWorkspaceSize(tensors, 3, tensors, 1));

    auto fields = made->getFieldsToSerialize();
    std::printf("%d %s %d\n", fields->nbFields, fields->fields[0].name, *static_cast<int32_t const*>(fields->fields[0].data));
    auto read = creator->createPlugin("attention", fields, TensorRTPhase::kRUNTIME);
    auto run = static_cast<IPluginV3OneRuntime*>(read->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    auto attached = run->attachToContext(nullptr);
    if (!attached) return 2;
    auto ready = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    PluginTensorDesc const inputs[3] = {half, half, half};
    ready->onShapeChange(inputs, 3, inputs, 1);
    auto address = [](unsigned long at) { return reinterpret_cast<void*>(at); };
    void const* const given[3] = {address(std::strtoul(arguments[2], nullptr, 0)), address(0x20), address(0x30)};
    void* const wanted[1] = {address(0x50)};
    auto stream = static_cast<cudaStream_t>(address(0x77));
    return ready->enqueue(inputs, inputs, given, wanted, address(0x40), stream) ? 3 : 0;
}
