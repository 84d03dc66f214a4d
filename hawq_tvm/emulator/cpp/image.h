// What a driver is given to load: a fatbin, a cubin or PTX. It tells its own length, and which GPUs it is for.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

size_t image_bytes(const void* image);  // 0: none of the three

// Whether a GPU of that compute capability runs it: machine code of the same major version and no higher minor one, or
// PTX of no higher version ("CUDA C++ Programming Guide", "Binary Compatibility" and "PTX Compatibility").
bool image_runs_on(const void* image, int major, int minor);
std::string image_contents(const void* image);  // "sm_75, compute_75"

}  // namespace emulator
