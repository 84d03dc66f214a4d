// libcudart.so.13: the runtime's functions that TVM's runtime calls.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "abi.h"
#include "api.h"
#include "gpu.h"
#include "memory.h"

using namespace emulator;

namespace {

// What the host would wait for, or what would move memory, is not allowed while a graph is captured ("CUDA C++
// Programming Guide", "Prohibited and Unhandled Operations").
template <class Call>
int outside_capture(Stream* stream, Call call) {
  return with_gpu([&](Gpu& gpu) -> int {
    const bool captures = stream ? stream->capturing : gpu.anyone_captures();
    if (!captures) return call(gpu);
    if (stream) stream->invalidated = true;
    return gpu.fail(kCaptureUnsupported, "");
  });
}

int attribute_value(const Facts& facts, int attribute) {
  switch (attribute) {
    case kThreadsPerBlock:
    case kBlockX:
    case kBlockY: return kMaxThreads;
    case kBlockZ: return kMostBlockZ;
    case kGridX: return kMostGridX;
    case kGridY:
    case kGridZ: return kMostGridYZ;
    case kSharedPerBlock: return std::min(int(kSharedWithoutAsking), facts.shared_bytes_per_block);
    case kSharedPerBlockOptIn: return facts.shared_bytes_per_block;
    case kWarp: return kWarpSize;
    case kRegistersPerBlock: return 65536;
    case kClockRate: return facts.clock_khz;
    case kMultiprocessors: return facts.multiprocessors;
    case kL2Bytes: return facts.l2_bytes;
    case kMajor: return facts.major;
    case kMinor: return facts.minor;
    default: return 0;
  }
}

}  // namespace

extern "C" {

// ---- the device -----------------------------------------------------------------------------------------------------

int cudaGetDeviceCount(int* count) {
  *count = 0;
  return with_gpu([&](Gpu&) {
    *count = 1;
    return kSuccess;
  });
}

int cudaGetDevice(int* device) {  // TVM calls these two before it cleans up
  *device = 0;
  return clean_up([](Gpu&) { return kSuccess; });
}

int cudaSetDevice(int device) {
  return clean_up([&](Gpu& gpu) { return device == 0 ? kSuccess : gpu.fail(kInvalidDevice, ""); });
}

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  return with_gpu([&](Gpu& gpu) {
    if (device != 0) return gpu.fail(kInvalidDevice, "");
    *value = attribute_value(gpu.facts, attribute);
    return kSuccess;
  });
}

int cudaGetDeviceProperties(void* properties, int device) {
  return with_gpu([&](Gpu& gpu) {
    if (device != 0) return gpu.fail(kInvalidDevice, "");
    memset(properties, 0, kDevicePropertiesBytes);
    auto& filled = *static_cast<DeviceProperties*>(properties);
    const Facts& facts = gpu.facts;
    snprintf(filled.name, sizeof filled.name, "%s", facts.name.c_str());
    filled.total_global_bytes = facts.memory_bytes;
    filled.shared_bytes_per_block = attribute_value(facts, kSharedPerBlock);
    filled.registers_per_block = attribute_value(facts, kRegistersPerBlock);
    filled.warp_size = kWarpSize;
    filled.threads_per_block = kMaxThreads;
    for (int i = 0; i < 3; i++) {
      filled.block_dimensions[i] = attribute_value(facts, kBlockX + i);
      filled.grid_dimensions[i] = attribute_value(facts, kGridX + i);
    }
    filled.major = facts.major;
    filled.minor = facts.minor;
    filled.multiprocessors = facts.multiprocessors;
    return kSuccess;
  });
}

// ---- errors ---------------------------------------------------------------------------------------------------------

int cudaGetLastError() {
  return clean_up([](Gpu& gpu) { return gpu.take_last_error(true); });
}

int cudaPeekAtLastError() {
  return clean_up([](Gpu& gpu) { return gpu.take_last_error(false); });
}

const char* cudaGetErrorName(int error) { return Gpu::error_name(static_cast<Error>(error)); }
const char* cudaGetErrorString(int error) { return Gpu::only().error_text(static_cast<Error>(error)); }

// ---- memory ---------------------------------------------------------------------------------------------------------

int cudaMalloc(void** pointer, size_t bytes) {
  *pointer = nullptr;
  return outside_capture(nullptr, [&](Gpu& gpu) {
    if (bytes == 0) return kSuccess;
    *pointer = emulator_malloc(bytes);
    if (*pointer) return kSuccess;
    return gpu.fail(kOutOfMemory, std::to_string(bytes) + " bytes, of " + std::to_string(device_memory_free()) +
                                      " that are free of the emulated " + gpu.facts.name);
  });
}

int cudaFree(void* pointer) {
  return clean_up([&](Gpu& gpu) {
    if (gpu.anyone_captures()) return gpu.fail(kCaptureUnsupported, "cudaFree");
    if (pointer == nullptr || emulator_free(pointer)) return kSuccess;
    return gpu.fail(kInvalidValue, "no buffer begins at the address to free");
  });
}

int cudaMallocHost(void** pointer, size_t bytes) {
  return with_gpu([&](Gpu& gpu) {
    return posix_memalign(pointer, kPage, bytes) == 0 ? kSuccess : gpu.fail(kOutOfMemory, "of the host");
  });
}

int cudaFreeHost(void* pointer) {
  free(pointer);
  return kSuccess;
}

int cudaMemGetInfo(size_t* free_bytes, size_t* all) {
  return with_gpu([&](Gpu&) {
    *free_bytes = device_memory_free();
    *all = device_memory();
    return kSuccess;
  });
}

int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, Stream* stream) {
  return with_gpu([&](Gpu& gpu) { return gpu.copy(to, from, bytes, kind, stream); });
}

int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, Stream* stream) {
  constexpr int kDeviceToDevice = 3;
  return with_gpu([&](Gpu& gpu) { return gpu.copy(to, from, bytes, kDeviceToDevice, stream); });
}

// ---- streams and events ---------------------------------------------------------------------------------------------

int cudaStreamCreate(Stream** stream) {
  return with_gpu([&](Gpu&) {
    *stream = new Stream;
    return kSuccess;
  });
}

int cudaStreamCreateWithFlags(Stream** stream, unsigned) { return cudaStreamCreate(stream); }

int cudaStreamDestroy(Stream* stream) {
  return clean_up([&](Gpu&) {
    delete stream;
    return kSuccess;
  });
}

int cudaStreamSynchronize(Stream* stream) {
  return outside_capture(stream, [](Gpu&) { return kSuccess; });
}

int cudaStreamWaitEvent(Stream*, Event*, unsigned) {
  return with_gpu([](Gpu&) { return kSuccess; });  // everything before it has happened
}

int cudaEventCreate(Event** event) {
  return with_gpu([&](Gpu&) {
    *event = new Event{};
    return kSuccess;
  });
}

int cudaEventDestroy(Event* event) {
  return clean_up([&](Gpu&) {
    delete event;
    return kSuccess;
  });
}

int cudaEventRecord(Event* event, Stream* stream) {
  return with_gpu([&](Gpu& gpu) {
    return gpu.perform(stream, [event] {
      event->time = std::chrono::steady_clock::now();
      return kSuccess;
    });
  });
}

int cudaEventSynchronize(Event*) {
  return with_gpu([](Gpu&) { return kSuccess; });
}

int cudaEventElapsedTime(float* milliseconds, Event* begin, Event* end) {
  return with_gpu([&](Gpu&) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return kSuccess;
  });
}

// ---- graphs ---------------------------------------------------------------------------------------------------------

int cudaStreamBeginCapture(Stream* stream, int) {
  return with_gpu([&](Gpu& gpu) { return gpu.begin_capture(stream); });
}

int cudaStreamEndCapture(Stream* stream, Graph** graph) {
  *graph = nullptr;
  return with_gpu([&](Gpu& gpu) { return gpu.end_capture(stream, graph); });
}

int cudaGraphInstantiate(Graph** executable, Graph* graph, unsigned long long) {
  return with_gpu([&](Gpu&) {
    *executable = new Graph(*graph);
    return kSuccess;
  });
}

int cudaGraphLaunch(Graph* executable, Stream* stream) {
  return with_gpu([&](Gpu& gpu) {
    for (const Operation& operation : *executable)
      if (const Error error = gpu.perform(stream, operation)) return error;
    return kSuccess;
  });
}

int cudaGraphDestroy(Graph* graph) {
  return clean_up([&](Gpu&) {
    delete graph;
    return kSuccess;
  });
}

int cudaGraphExecDestroy(Graph* executable) {
  return clean_up([&](Gpu&) {
    delete executable;
    return kSuccess;
  });
}

}  // extern "C"
