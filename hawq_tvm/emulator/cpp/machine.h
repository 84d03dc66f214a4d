// What a kernel's text and the emulated machine say to each other.
//
// The kernel's text is compiled as C++ after device.h and calls the functions declared here. The machine runs the
// blocks of a grid side by side on the cores; the threads of one block take turns on one core, each on a stack of its
// own, and give way only where CUDA lets them meet: barriers and operations of a whole warp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

struct Index {
  unsigned x, y, z;
};

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;  // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"

// ---- what a compiled kernel says about itself -----------------------------------------------------------------------

struct Parameter {
  const char* name;
  unsigned bytes;          // of its value
  unsigned element_bytes;  // of what a pointer points to; 0 for a parameter that is a value
};

struct SharedArray {  // a __shared__ array of known size
  const char* name;
  unsigned offset, bytes, element_bytes;
};

struct Kernel {
  const char* name;
  void (*call)(void* const* arguments);  // the addresses of the arguments, as cuLaunchKernel takes them
  const Parameter* parameters;
  unsigned parameter_count;
  const SharedArray* shared_arrays;
  unsigned shared_array_count;
  unsigned static_shared_bytes;  // as the GPU counts them: without the gaps that lie between arrays here
  unsigned dynamic_offset;       // where dynamic shared memory begins
  unsigned max_threads;          // __launch_bounds__, 0 where it says nothing
  bool checked;                  // whether every access of its text is reported
};

// ---- what a kernel asks of the machine ------------------------------------------------------------------------------

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
char* shared_memory();  // the running block's

void block_barrier();          // __syncthreads, bar.sync 0
void warp_barrier(uint32_t mask);  // __syncwarp
enum class Shuffle { index, up, down, exclusive_or };
uint32_t shuffle(Shuffle kind, uint32_t mask, uint32_t value, int operand, int width);
uint32_t ballot(uint32_t mask, bool predicate);
uint32_t active_mask();

// "CUDA C++ Programming Guide", "Atomic Functions": the value before, of an update that no other comes between.
template <class T>
T atomic_add(T* address, T value);
template <class T>
T atomic_min(T* address, T value);
template <class T>
T atomic_max(T* address, T value);
template <class T>
T atomic_compare_and_swap(T* address, T expected, T value);

[[noreturn]] void unsupported(const char* what);

// ---- accesses that the compiler does not report by itself: those of PTX and WMMA ------------------------------------

[[noreturn]] void fail_misaligned(const void* address, size_t alignment, unsigned line);  // of the text, or 0
void check_read(const void* address, size_t bytes, size_t alignment);
void check_write(const void* address, size_t bytes, size_t alignment);
char* from_shared_address(uint32_t address, size_t bytes);
uint32_t to_shared_address(const void* pointer);

}  // namespace emulator
