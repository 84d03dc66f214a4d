// PTX instructions as functions: what hawq_tvm/emulator/ptx.py writes in place of inline assembly.
// Sections named are those of NVIDIA's "Parallel Thread Execution ISA".
#pragma once

#include <type_traits>

#include "machine.h"

namespace emulator {

// ---- mma.sync on integers: "Warp Level Matrix Multiply-Accumulate Instructions" -------------------------------------

struct MmaForm {
  unsigned rows;         // M: 8 or 16; N is always 8
  unsigned depth;        // K
  unsigned bits;         // of an element of A and B: 8 or 4
  bool a_signed, b_signed;
};

struct MmaOperands {  // one thread's registers, as many as the form has
  uint32_t a[4], b[2], c[4];
};

struct Registers {
  uint32_t word[4];
};

Registers mma_sync(MmaForm form, MmaOperands operands);

// ---- moves ----------------------------------------------------------------------------------------------------------

Registers ldmatrix(unsigned count, bool transposed, uint32_t shared_address);
void cp_async(uint32_t shared_address, const void* source, unsigned bytes, unsigned source_bytes);
void cp_async_commit_group();
void cp_async_wait_group(unsigned newest_left);
void cp_async_wait_all();

template <class T, unsigned N>
struct Vector {
  T element[N];
};

// Reads and writes that come with their own check, so that the compiler need not report them.
template <class T, unsigned N>
__attribute__((no_sanitize("thread"))) static inline Vector<T, N> load(const void* address) {
  check_read(address, sizeof(Vector<T, N>), sizeof(Vector<T, N>));
  Vector<T, N> value;
  __builtin_memcpy(&value, address, sizeof value);
  return value;
}

template <class T, unsigned N>
__attribute__((no_sanitize("thread"))) static inline void store(void* address, Vector<T, N> value) {
  check_write(address, sizeof value, sizeof value);
  __builtin_memcpy(address, &value, sizeof value);
}

template <class T, unsigned N>
static inline Vector<T, N> load_shared(uint32_t address) {
  return load<T, N>(from_shared_address(address, sizeof(Vector<T, N>)));
}

template <class T, unsigned N>
static inline void store_shared(uint32_t address, Vector<T, N> value) {
  store<T, N>(from_shared_address(address, sizeof value), value);
}

// ---- operands of inline assembly ------------------------------------------------------------------------------------

// A register takes a value: bits where one of the two is a float and the other no number, else as C++ converts.
template <class To, class From>
static inline void put(To& to, From from) {
  if constexpr (std::is_floating_point<To>::value != std::is_floating_point<From>::value && sizeof(To) == sizeof(From))
    __builtin_memcpy(&to, &from, sizeof to);
  else
    to = static_cast<To>(from);
}

template <class To, class From>
static inline To get(From from) {
  To to;
  put(to, from);
  return to;
}

static inline uint32_t address(uint32_t base, int offset) { return base + offset; }
static inline char* address(const volatile void* base, int offset) {
  return const_cast<char*>(static_cast<const volatile char*>(base)) + offset;
}
static inline char* address(uint64_t base, int offset) { return reinterpret_cast<char*>(base) + offset; }

static inline void named_barrier(uint32_t number) {
  if (number != 0) unsupported("barriers other than number 0");
  block_barrier();
}

// ---- arithmetic: "Integer Arithmetic Instructions", "Data Movement and Conversion Instructions" ---------------------

// prmt: byte i of the result is that one of the eight bytes {b, a} which the low 3 bits of selector digit i name; its
// highest bit asks for the byte's sign instead.
static inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (unsigned i = 0; i < 4; i++) {
    const uint32_t digit = selector >> (4 * i) & 15, byte = bytes >> (8 * (digit & 7)) & 255;
    result |= (digit & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return result;
}

// dp4a: the dot product of four bytes with four bytes, added to c; it wraps around.
template <class A, class B>
static inline uint32_t dot_bytes(uint32_t a, uint32_t b, uint32_t c) {
  for (unsigned i = 0; i < 4; i++)
    c += static_cast<uint32_t>(int(static_cast<A>(a >> (8 * i))) * int(static_cast<B>(b >> (8 * i))));
  return c;
}

// lop3: bit i of the table is the result for the bits (a, b, c) of i, a the highest.
static inline uint32_t look_up_bits(uint32_t a, uint32_t b, uint32_t c, unsigned table) {
  uint32_t result = 0;
  for (unsigned i = 0; i < 8; i++)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}

static inline int32_t multiply_high(int32_t a, int32_t b) { return static_cast<int32_t>(int64_t(a) * b >> 32); }
static inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t(a) * b >> 32); }
static inline int64_t multiply_high(int64_t a, int64_t b) { return static_cast<int64_t>(__int128(a) * b >> 64); }
static inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
static inline int64_t multiply_wide(int32_t a, int32_t b) { return int64_t(a) * b; }
static inline uint64_t multiply_wide(uint32_t a, uint32_t b) { return uint64_t(a) * b; }

// bfe: `length` bits of `value` from bit `first` on; beyond its end, zeros or copies of the sign.
static inline uint32_t extract_bits(uint32_t value, uint32_t first, uint32_t length) {
  first &= 255;
  length &= 255;
  const uint32_t shifted = first < 32 ? value >> first : 0;
  return length < 32 ? shifted & ((1u << length) - 1) : shifted;
}
static inline int32_t extract_bits(int32_t value, uint32_t first, uint32_t length) {
  first &= 255;
  length &= 255;
  const int32_t shifted = value >> (first < 31 ? first : 31);
  if (length == 0) return 0;
  return length < 32 ? static_cast<int32_t>(static_cast<uint32_t>(shifted) << (32 - length)) >> (32 - length) : shifted;
}

using Byte_s = int8_t;
using Byte_u = uint8_t;

// cvt to a 32-bit integer: values beyond it become the nearest that it has, not-a-number becomes 0.
static inline int32_t to_int(float value) {
  if (value != value) return 0;
  if (value >= 2147483648.0f) return INT32_MAX;
  return value < -2147483648.0f ? INT32_MIN : static_cast<int32_t>(value);
}

// cvt.pack.sat: a and b, each as near as the narrow type comes, below c's low half: d = {c's lower bits, a, b}.
static inline uint32_t pack_saturated(int32_t a, int32_t b, uint32_t c, unsigned bits, bool is_signed) {
  const int32_t least = is_signed ? -(1 << (bits - 1)) : 0, most = (1 << (is_signed ? bits - 1 : bits)) - 1;
  const uint32_t mask = (1u << bits) - 1;
  const auto narrow = [&](int32_t v) { return static_cast<uint32_t>(v < least ? least : v > most ? most : v) & mask; };
  return (bits < 16 ? c << (2 * bits) : 0) | narrow(a) << bits | narrow(b);
}

// shf.l and shf.r, .wrap and .clamp: 32 bits out of {b, a} shifted.
static inline uint32_t funnel_shift(bool left, bool clamp, uint32_t a, uint32_t b, uint32_t count) {
  const uint64_t both = uint64_t(b) << 32 | a;
  const uint32_t by = clamp ? (count < 32 ? count : 32) : count & 31;
  return static_cast<uint32_t>(left ? (both << by) >> 32 : both >> by);
}

}  // namespace emulator
