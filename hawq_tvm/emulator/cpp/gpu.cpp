#include "gpu.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "api.h"
#include "image.h"
#include "memory.h"
#include "sha256.h"

namespace emulator {

namespace {

struct Named {
  Error error;
  const char *name, *text;
};

constexpr Named kNames[] = {
    {kSuccess, "CUDA_SUCCESS", "no error"},
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kDriverTooOld, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {kNoDevice, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {kNoBinaryForGpu, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {kOutOfResources, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {kMisalignedAddress, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {kNotSupported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {kCaptureInvalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {kCaptureImplicit, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
};

const Named& named(Error error) {
  for (const Named& entry : kNames)
    if (entry.error == error) return entry;
  static constexpr Named unknown{kSuccess, "CUDA_ERROR_UNKNOWN", "unknown error"};
  return unknown;
}

}  // namespace

Gpu& Gpu::only() {
  static Gpu* const gpu = new Gpu;  // never destroyed: libraries are unloaded in any order
  return *gpu;
}

Gpu::Gpu() {
  const char* path = getenv("HAWQ_TVM_EMULATOR");
  std::ifstream file(path ? path : "");
  if (!file) {
    fprintf(stderr, "hawq-tvm emulator: HAWQ_TVM_EMULATOR names no file that can be read: %s\n", path ? path : "none");
    facts.trouble = kNoDevice;
  }
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string key;
    words >> key >> std::ws;
    if (key == "name") std::getline(words, facts.name);
    else if (key == "compute_capability") words >> facts.major >> facts.minor;
    else if (key == "multiprocessors") words >> facts.multiprocessors;
    else if (key == "memory_bytes") words >> facts.memory_bytes;
    else if (key == "shared_bytes_per_block") words >> facts.shared_bytes_per_block;
    else if (key == "l2_bytes") words >> facts.l2_bytes;
    else if (key == "clock_khz") words >> facts.clock_khz;
    else if (key == "order") words >> facts.order;
    else if (key == "workers") words >> facts.workers;
    else if (key == "trouble") words >> facts.trouble;
    else if (key == "kernel") {
      std::string image, name, library;
      words >> image >> name >> std::ws;
      std::getline(words, library);
      kernels_[image][name] = library;
    } else {
      fprintf(stderr, "hawq-tvm emulator: %s has a line that is not understood: %s\n", path, line.c_str());
      facts.trouble = kNoDevice;
    }
  }
  set_device_memory(facts.memory_bytes);
  standing_ = static_cast<Error>(facts.trouble);
}

// ---- errors ---------------------------------------------------------------------------------------------------------

Error Gpu::fail(Error error, const std::string& detail) {
  last_ = detail_of_ = error;
  detail_ = detail;
  const bool ends_context = error == kIllegalAddress || error == kMisalignedAddress || error == kLaunchFailed;
  if (ends_context) standing_ = error;
  return error;
}

Error Gpu::take_last_error(bool forget) {
  const Error error = standing_ ? standing_ : last_;
  if (forget) last_ = kSuccess;
  return error;
}

const char* Gpu::error_name(Error error) { return named(error).name; }

const char* Gpu::error_text(Error error) {
  static thread_local std::string shown;
  std::lock_guard<std::mutex> guard(lock);
  shown = named(error).text;
  if (error == detail_of_ && !detail_.empty()) shown += ": " + detail_;
  return shown.c_str();
}

// ---- modules --------------------------------------------------------------------------------------------------------

Error Gpu::load(const void* image, Module** module) {
  const size_t bytes = image_bytes(image);
  if (bytes == 0) return fail(kInvalidImage, "neither a fatbin nor a cubin nor PTX");
  if (!image_runs_on(image, facts.major, facts.minor))
    return fail(kNoBinaryForGpu, "the image is for " + image_contents(image) + ", and the emulated " + facts.name +
                                     " is of compute capability " + std::to_string(facts.major) + "." +
                                     std::to_string(facts.minor));
  const std::string hash = sha256(image, bytes);
  if (!kernels_.count(hash))
    return fail(kInvalidImage, "the emulator was given no CUDA text of the image with SHA-256 " + hash);
  *module = new Module{hash};
  return kSuccess;
}

Error Gpu::find(Module* module, const char* name, Function** function) {
  const auto& names = kernels_[module->image];
  const auto found = names.find(name);
  if (found == names.end()) return fail(kNotFound, std::string("the CUDA text has no kernel '") + name + "'");
  void*& library = libraries_[found->second];
  if (!library) library = dlopen(found->second.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail(kNotFound, dlerror());
  const void* kernel = dlsym(library, (std::string(name) + "__emulated").c_str());
  if (!kernel) return fail(kNotFound, dlerror());
  const auto* found_kernel = static_cast<const Kernel*>(kernel);
  const unsigned taken = std::min(kSharedWithoutAsking, found_kernel->static_shared_bytes);
  *function = new Function{found_kernel, kSharedWithoutAsking - taken};
  return kSuccess;
}

// ---- launches -------------------------------------------------------------------------------------------------------

Error Gpu::launch(const Function& function, const LaunchSizes& sizes, void** arguments, Stream* stream) {
  const Kernel& kernel = *function.kernel;
  const std::string which = std::string("kernel '") + kernel.name + "': ";
  if (sizes.grid[0] > kMostGridX || sizes.grid[1] > kMostGridYZ || sizes.grid[2] > kMostGridYZ ||
      sizes.block[2] > kMostBlockZ)
    return fail(kInvalidValue, which + "a grid or block beyond the limits of its dimensions");
  for (int i = 0; i < 3; i++)
    if (sizes.grid[i] == 0 || sizes.block[i] == 0) return fail(kInvalidValue, which + "a dimension of 0");
  const uint64_t threads = uint64_t(sizes.block[0]) * sizes.block[1] * sizes.block[2];
  if (threads > kMaxThreads) return fail(kInvalidValue, which + std::to_string(threads) + " threads a block");
  if (kernel.max_threads && threads > kernel.max_threads)
    return fail(kOutOfResources, which + std::to_string(threads) + " threads a block, its launch bounds say " +
                                     std::to_string(kernel.max_threads));
  if (sizes.dynamic_shared > function.dynamic_limit)
    return fail(kInvalidValue, which + std::to_string(sizes.dynamic_shared) + " bytes of dynamic shared memory, of " +
                                   std::to_string(function.dynamic_limit) + " that it may ask for");
  // The values are copied: a captured launch is made when the caller's are gone.
  std::vector<std::vector<char>> values(kernel.parameter_count);
  for (unsigned i = 0; i < kernel.parameter_count; i++) {
    const char* value = static_cast<const char*>(arguments[i]);
    values[i].assign(value, value + kernel.parameters[i].bytes);
  }
  return perform(stream, [this, function, sizes, values] {
    std::vector<void*> pointers(values.size() + 1);
    for (size_t i = 0; i < values.size(); i++) pointers[i] = const_cast<char*>(values[i].data());
    return run(function, sizes, pointers.data());
  });
}

Error Gpu::run(const Function& function, const LaunchSizes& sizes, void* const* arguments) {
  constexpr Error kErrors[] = {kSuccess, kIllegalAddress, kMisalignedAddress, kLaunchFailed};  // as of Failure
  char message[2048];
  const int failure = emulator_launch(function.kernel, sizes.grid, sizes.block, sizes.dynamic_shared, arguments,
                                      facts.order, facts.workers, message, sizeof message);
  return failure ? fail(kErrors[failure], message) : kSuccess;
}

Error Gpu::copy(void* to, const void* from, size_t bytes, int kind, Stream* stream) {
  const bool to_device = kind == 1 || kind == 3, from_device = kind == 2 || kind == 3;  // cudaMemcpyKind
  for (const auto& [checked, pointer] : {std::pair(to_device, static_cast<const void*>(to)), {from_device, from}}) {
    if (!checked || bytes == 0) continue;
    const Buffer* buffer = find_buffer(pointer);
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    if (!buffer || begin < buffer->begin || begin + bytes > buffer->end)
      return fail(kInvalidValue, "a copy of " + std::to_string(bytes) + " bytes that leaves its buffer on the device");
  }
  return perform(stream, [to, from, bytes] {
    memmove(to, from, bytes);
    return kSuccess;
  });
}

// ---- graphs ---------------------------------------------------------------------------------------------------------

Error Gpu::perform(Stream* stream, Operation operation) {
  if (stream && stream->capturing) {
    if (stream->invalidated) return fail(kCaptureInvalidated, "");
    stream->captured.push_back(std::move(operation));
    return kSuccess;
  }
  if (!stream && anyone_captures()) return fail(kCaptureImplicit, "");
  return operation();
}

Error Gpu::begin_capture(Stream* stream) {
  if (!stream || stream->capturing) return fail(kCaptureUnsupported, "of the legacy stream, or twice");
  stream->capturing = true;
  stream->invalidated = false;
  stream->captured.clear();
  capturing_++;
  return kSuccess;
}

Error Gpu::end_capture(Stream* stream, Graph** graph) {
  if (!stream || !stream->capturing) return fail(kInvalidValue, "the stream is not capturing");
  stream->capturing = false;
  capturing_--;
  if (stream->invalidated) return fail(kCaptureInvalidated, "");
  *graph = new Graph(std::move(stream->captured));
  return kSuccess;
}

}  // namespace emulator
