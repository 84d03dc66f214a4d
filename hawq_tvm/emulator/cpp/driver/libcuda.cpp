// libcuda.so.1: the driver's functions that TVM's runtime calls.
#include <cstdio>

#include "abi.h"
#include "gpu.h"

using namespace emulator;

extern "C" {

// TVM shows the name alone where loading or launching fails, so the name tells why, too.
int cuGetErrorName(int error, const char** name) {
  static thread_local std::string shown;
  const auto known = static_cast<Error>(error);
  shown = std::string(Gpu::error_name(known)) + " (" + Gpu::only().error_text(known) + ")";
  *name = shown.c_str();
  return kSuccess;
}

int cuGetErrorString(int error, const char** text) {
  *text = Gpu::only().error_text(static_cast<Error>(error));
  return kSuccess;
}

int cuDeviceGetName(char* name, int length, int device) {
  return with_gpu([&](Gpu& gpu) {
    if (device != 0) return gpu.fail(kInvalidDevice, "");
    snprintf(name, length, "%s", gpu.facts.name.c_str());
    return kSuccess;
  });
}

int cuModuleLoadData(Module** module, const void* image) {
  return with_gpu([&](Gpu& gpu) { return gpu.load(image, module); });
}

int cuModuleUnload(Module* module) {
  return clean_up([&](Gpu&) {
    delete module;  // its functions stay: they are small, and TVM asks for each once
    return kSuccess;
  });
}

int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  return with_gpu([&](Gpu& gpu) { return gpu.find(module, name, function); });
}

int cuFuncSetAttribute(Function* function, int attribute, int value) {
  return with_gpu([&](Gpu& gpu) {
    if (attribute != kDynamicSharedLimit) return kSuccess;
    const unsigned all = value + function->kernel->static_shared_bytes;
    if (value < 0 || all > static_cast<unsigned>(gpu.facts.shared_bytes_per_block))
      return gpu.fail(kInvalidValue, std::string("kernel '") + function->kernel->name + "' wants " +
                                         std::to_string(all) + " bytes of shared memory, of " +
                                         std::to_string(gpu.facts.shared_bytes_per_block) + " that a block may have");
    function->dynamic_limit = value;
    return kSuccess;
  });
}

int cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** arguments, void**) {
  return with_gpu([&](Gpu& gpu) {
    const LaunchSizes sizes{{config->grid[0], config->grid[1], config->grid[2]},
                            {config->block[0], config->block[1], config->block[2]},
                            config->dynamic_shared};
    return gpu.launch(*function, sizes, arguments, static_cast<Stream*>(config->stream));
  });
}

int cuTensorMapEncodeTiled() {
  return with_gpu([](Gpu& gpu) { return gpu.fail(kNotSupported, "tensor maps"); });
}

}  // extern "C"
