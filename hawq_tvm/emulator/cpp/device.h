// What CUDA C++ has beside C++, as far as TVM's text uses it: qualifiers, vector types, built-in variables, functions.
// The kernel's text is compiled after this file.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "machine.h"
#include "ptx.h"

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __inline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

// ---- vector types: sizes and alignments of "CUDA C++ Programming Guide", "Built-in Vector Types" --------------------

#define EMULATOR_VECTORS(TYPE, NAME, ALIGN2, ALIGN4)                                                  \
  struct NAME##1 { TYPE x; };                                                                         \
  struct alignas(ALIGN2) NAME##2 { TYPE x, y; };                                                      \
  struct NAME##3 { TYPE x, y, z; };                                                                   \
  struct alignas(ALIGN4) NAME##4 { TYPE x, y, z, w; };                                                \
  static inline NAME##1 make_##NAME##1(TYPE x) { return {x}; }                                        \
  static inline NAME##2 make_##NAME##2(TYPE x, TYPE y) { return {x, y}; }                             \
  static inline NAME##3 make_##NAME##3(TYPE x, TYPE y, TYPE z) { return {x, y, z}; }                  \
  static inline NAME##4 make_##NAME##4(TYPE x, TYPE y, TYPE z, TYPE w) { return {x, y, z, w}; }

EMULATOR_VECTORS(signed char, char, 2, 4)
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned int, uint, 8, 16)
EMULATOR_VECTORS(long long, longlong, 16, 16)
EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(double, double, 16, 16)
#undef EMULATOR_VECTORS

namespace emulator {
// The pointer to a vector, which must be as aligned as the vector's type.
template <class T, unsigned Line>
static inline T* aligned(const volatile void* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) & (alignof(T) - 1))
    fail_misaligned(const_cast<const void*>(pointer), alignof(T), Line);
  return static_cast<T*>(const_cast<void*>(pointer));
}
}  // namespace emulator

struct dim3 { unsigned x, y, z; };

// ---- built-in variables ---------------------------------------------------------------------------------------------

namespace emulator {
template <Index (*Read)()>
struct BuiltIn {
  struct X { operator unsigned() const { return Read().x; } };
  struct Y { operator unsigned() const { return Read().y; } };
  struct Z { operator unsigned() const { return Read().z; } };
  X x; Y y; Z z;
};
}  // namespace emulator

// For functions of the text; in kernels, text.py declares constants of the same names, which are faster.
static const emulator::BuiltIn<emulator::thread_index> threadIdx{};
static const emulator::BuiltIn<emulator::block_index> blockIdx{};
static const emulator::BuiltIn<emulator::block_size> blockDim{};
static const emulator::BuiltIn<emulator::grid_size> gridDim{};

// ---- built-in functions ---------------------------------------------------------------------------------------------

static inline void __syncthreads() { emulator::block_barrier(); }
static inline void __syncwarp(unsigned mask = ~0u) { emulator::warp_barrier(mask); }
static inline unsigned __activemask() { return emulator::active_mask(); }
static inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate != 0); }
static inline int __any_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate != 0) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return emulator::ballot(mask, predicate == 0) == 0; }

namespace emulator {
template <class T>
static inline T shuffle_value(Shuffle kind, unsigned mask, T value, int operand, int width) {
  static_assert(sizeof(T) == 4, "shuffles of 32 bits");
  uint32_t word;
  __builtin_memcpy(&word, &value, 4);
  word = shuffle(kind, mask, word, operand, width);
  __builtin_memcpy(&value, &word, 4);
  return value;
}
}  // namespace emulator

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return emulator::shuffle_value(emulator::Shuffle::index, mask, value, lane, width);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle_value(emulator::Shuffle::up, mask, value, delta, width);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle_value(emulator::Shuffle::down, mask, value, delta, width);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return emulator::shuffle_value(emulator::Shuffle::exclusive_or, mask, value, lanes, width);
}

static inline uint32_t __cvta_generic_to_shared(const void* pointer) { return emulator::to_shared_address(pointer); }
template <class T>
static inline T __ldg(const T* pointer) { return *pointer; }

template <class T>
static inline T atomicAdd(T* address, std::common_type_t<T> value) { return emulator::atomic_add(address, value); }
template <class T>
static inline T atomicMin(T* address, std::common_type_t<T> value) { return emulator::atomic_min(address, value); }
template <class T>
static inline T atomicMax(T* address, std::common_type_t<T> value) { return emulator::atomic_max(address, value); }
template <class T>
static inline T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return emulator::atomic_compare_and_swap(address, expected, value);
}
static inline void __threadfence() {}  // one thread of a block runs at a time, and blocks share memory
static inline void __threadfence_block() {}

// "CUDA Math API", "Integer Intrinsics"
static inline int __mulhi(int a, int b) { return static_cast<int>((int64_t(a) * b) >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t(a) * b) >> 32); }
static inline int __clz(int value) { return value ? __builtin_clz(static_cast<unsigned>(value)) : 32; }
static inline int __popc(unsigned value) { return __builtin_popcount(value); }
static inline int __ffs(int value) { return __builtin_ffs(value); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  return emulator::permute_bytes(a, b, selector);
}
static inline int __dp4a(int a, int b, int c) { return emulator::dot_bytes<int8_t, int8_t>(a, b, c); }
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  return emulator::dot_bytes<uint8_t, uint8_t>(a, b, c);
}
static inline int __dp4a(unsigned a, int b, int c) { return emulator::dot_bytes<uint8_t, int8_t>(a, b, c); }
static inline int __dp4a(int a, unsigned b, int c) { return emulator::dot_bytes<int8_t, uint8_t>(a, b, c); }

// "CUDA Math API", "Type Casting Intrinsics" and single precision
static inline int __float2int_rn(float value) { return emulator::to_int(std::nearbyint(value)); }
static inline int __float2int_rz(float value) { return emulator::to_int(std::trunc(value)); }
static inline int __float2int_rd(float value) { return emulator::to_int(std::floor(value)); }
static inline int __float2int_ru(float value) { return emulator::to_int(std::ceil(value)); }
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline int __float_as_int(float value) { int bits; __builtin_memcpy(&bits, &value, 4); return bits; }
static inline float __int_as_float(int bits) { float value; __builtin_memcpy(&value, &bits, 4); return value; }

// CUDA's overloads of max and min take operands of two types, as C's conversions do.
template <class A, class B>
static inline auto max(A a, B b) -> std::common_type_t<A, B> { return std::max<std::common_type_t<A, B>>(a, b); }
template <class A, class B>
static inline auto min(A a, B b) -> std::common_type_t<A, B> { return std::min<std::common_type_t<A, B>>(a, b); }

// ---- what a kernel says about itself: hawq_tvm/emulator/text.py writes the calls ------------------------------------

namespace emulator {

template <class T>
constexpr unsigned element_bytes() {  // of what a pointer points to, 0 for a value
  using Pointed = std::remove_cv_t<std::remove_pointer_t<T>>;
  if constexpr (!std::is_pointer<T>::value) return 0;
  else if constexpr (std::is_void<Pointed>::value) return 1;
  else return sizeof(Pointed);
}

template <class... Types, size_t... I>
constexpr std::array<Parameter, sizeof...(Types)> parameters_of(const std::array<const char*, sizeof...(Types)>& names,
                                                                std::index_sequence<I...>) {
  return {{{names[I], sizeof(Types), element_bytes<Types>()}...}};
}

template <class... Types>
constexpr auto parameters(void (*)(Types...), const std::array<const char*, sizeof...(Types)>& names) {
  return parameters_of<Types...>(names, std::index_sequence_for<Types...>{});
}

template <size_t N>
constexpr unsigned total_bytes(const std::array<SharedArray, N>& arrays) {
  unsigned total = 0;
  for (const SharedArray& array : arrays) total += array.bytes;
  return total;
}

// Arguments lie in the host's memory, whose reads are no accesses of the kernel.
template <class... Types, size_t... I>
__attribute__((no_sanitize("thread"))) static inline void call_with(void (*kernel)(Types...), void* const* arguments,
                                                                    std::index_sequence<I...>) {
  kernel(*static_cast<Types*>(arguments[I])...);
}

template <class... Types>
__attribute__((no_sanitize("thread"))) static inline void call(void (*kernel)(Types...), void* const* arguments) {
  call_with(kernel, arguments, std::index_sequence_for<Types...>{});
}

}  // namespace emulator
