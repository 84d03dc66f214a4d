// The parts of CUDA 13's interface that TVM's runtime uses, as cuda.h and driver_types.h lay them out. The toolkit need
// not be there; where it is, tests/test_emulator_driver.py holds these against its headers.
#pragma once

#include <cstddef>

namespace emulator {

struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], dynamic_shared;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

struct DeviceProperties {  // the beginning of cudaDeviceProp
  char name[256];
  char uuid[16], luid[8];
  unsigned luid_node_mask;
  size_t total_global_bytes, shared_bytes_per_block;
  int registers_per_block, warp_size;
  size_t pitch;
  int threads_per_block, block_dimensions[3], grid_dimensions[3];
  size_t constant_bytes;
  int major, minor;
  size_t texture_alignment, texture_pitch_alignment;
  int multiprocessors;
};

constexpr size_t kDevicePropertiesBytes = 1008;  // sizeof(cudaDeviceProp)

enum Attribute : int {  // cudaDeviceAttr
  kThreadsPerBlock = 1,
  kBlockX = 2,
  kBlockY = 3,
  kBlockZ = 4,
  kGridX = 5,
  kGridY = 6,
  kGridZ = 7,
  kSharedPerBlock = 8,
  kWarp = 10,
  kRegistersPerBlock = 12,
  kClockRate = 13,
  kMultiprocessors = 16,
  kL2Bytes = 38,
  kMajor = 75,
  kMinor = 76,
  kSharedPerBlockOptIn = 97,
};

constexpr int kDynamicSharedLimit = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

}  // namespace emulator
