// The emulated GPU that both of CUDA's libraries speak for: its facts, its modules, what it was asked to do.
//
// The environment variable HAWQ_TVM_EMULATOR names a file that describes it, a key and values a line:
//
//     name Tesla T4
//     compute_capability 7 5
//     multiprocessors 40
//     memory_bytes 16000000000
//     shared_bytes_per_block 65536     the most that a block may ask for
//     l2_bytes 4194304
//     clock_khz 1590000
//     order 0                          of threads, as of emulator_launch
//     workers 2
//     trouble 0                        a CUDA error that every call returns: 100 no device, 35 driver too old
//     kernel SHA256 NAME PATH          a kernel of the image with that hash, in the shared library PATH
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "machine.h"

namespace emulator {

// Errors have the same numbers in both of CUDA's libraries (driver_types.h and cuda.h of CUDA 13).
enum Error : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kDriverTooOld = 35,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kNoBinaryForGpu = 209,
  kNotFound = 500,
  kIllegalAddress = 700,
  kOutOfResources = 701,
  kMisalignedAddress = 716,
  kLaunchFailed = 719,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureImplicit = 906,
};

// "CUDA C++ Programming Guide", "Technical Specifications per Compute Capability"
constexpr unsigned kMostGridX = 0x7fffffff, kMostGridYZ = 65535, kMostBlockZ = 64;
// "Compute Capability 7.x", "Shared Memory": what a kernel may use without asking.
constexpr unsigned kSharedWithoutAsking = 48 * 1024;

struct Facts {
  std::string name = "emulated GPU";
  int major = 7, minor = 5;
  int multiprocessors = 1;
  size_t memory_bytes = size_t(1) << 30;
  int shared_bytes_per_block = kSharedWithoutAsking;
  int l2_bytes = 0;
  int clock_khz = 0;
  unsigned order = 0, workers = 1;
  int trouble = 0;
};

using Operation = std::function<Error()>;
using Graph = std::vector<Operation>;

struct Stream {
  bool capturing = false, invalidated = false;
  Graph captured;
};

struct Event {
  std::chrono::steady_clock::time_point time;
};

struct Module {
  std::string image;  // its hash
};

struct Function {
  const Kernel* kernel;
  unsigned dynamic_limit;  // bytes of dynamic shared memory that it may ask for
};

struct LaunchSizes {
  unsigned grid[3], block[3], dynamic_shared;
};

// Every call that reads or changes it holds its lock, so that one thing happens after the other: streams are not side
// by side here.
class Gpu {
 public:
  static Gpu& only();

  std::mutex lock;
  Facts facts;

  // The error that a call returns; the detail is told with its text. After a failed kernel every call fails, but those
  // that clean up: TVM makes them in destructors, where an error would end the process before anyone hears why.
  Error fail(Error error, const std::string& detail);
  Error standing_error() const { return standing_; }
  Error take_last_error(bool forget);
  static const char* error_name(Error error);
  const char* error_text(Error error);  // takes the lock; with the detail; the caller's until it asks again

  Error load(const void* image, Module** module);
  Error find(Module* module, const char* name, Function** function);
  Error launch(const Function& function, const LaunchSizes& sizes, void** arguments, Stream* stream);
  Error copy(void* to, const void* from, size_t bytes, int kind, Stream* stream);
  // Now, or when the graph is launched that a stream is capturing.
  Error perform(Stream* stream, Operation operation);
  bool anyone_captures() const { return capturing_ > 0; }
  Error begin_capture(Stream* stream);
  Error end_capture(Stream* stream, Graph** graph);

 private:
  Gpu();
  Error run(const Function& function, const LaunchSizes& sizes, void* const* arguments);

  std::map<std::string, std::map<std::string, std::string>> kernels_;  // library by image and name
  std::map<std::string, void*> libraries_;
  Error standing_ = kSuccess, last_ = kSuccess;
  std::string detail_;
  Error detail_of_ = kSuccess;
  int capturing_ = 0;
};

// What a function of CUDA's libraries does: one at a time, and nothing where the GPU is past help.
template <class Call>
int with_gpu(Call call) {
  Gpu& gpu = Gpu::only();
  std::lock_guard<std::mutex> guard(gpu.lock);
  return gpu.standing_error() ? gpu.standing_error() : call(gpu);
}

template <class Call>
int clean_up(Call call) {
  Gpu& gpu = Gpu::only();
  std::lock_guard<std::mutex> guard(gpu.lock);
  return call(gpu);
}

}  // namespace emulator
