#include "wmma.h"

#include <algorithm>
#include <cstring>

#include "block.h"
#include "shadow.h"

namespace emulator {

namespace {

bool first_lane() { return current_thread().lane() == 0; }

void fail_unless(bool holds, const char* sentence) {
  if (!holds) fail(Failure::launch_failure, "%s", sentence);
}

// "Warp Matrix Functions", load_matrix_sync: the pointer is a multiple of 256 bits off its buffer's begin, and the
// leading dimension a multiple of 16 bytes; pointer and leading dimension are the same for all threads of the warp.
// 256 bits cannot be told from an address alone: 16 bytes are what the instructions need.
constexpr unsigned kAlignment = 16;

// Checks an access to the whole matrix in memory, then takes its elements: `take(its place in the matrix that is held
// here, the row of memory that it lies in, its number there)`.
template <class Memory, class Take>
void each_element(const WmmaForm& form, Memory* begin, unsigned leading, bool write, Take take) {
  const unsigned rows = form.across ? form.columns : form.rows, length = form.across ? form.rows : form.columns;
  const size_t row_bytes = size_t(length) * form.bits / 8, leading_bytes = size_t(leading) * form.bits / 8;
  for (unsigned i = 0; i < rows; i++) check_warp_access(begin + i * leading_bytes, row_bytes, 1, write);
  for (unsigned row = 0; row < form.rows; row++)
    for (unsigned column = 0; column < form.columns; column++) {
      const unsigned outer = form.across ? column : row, inner = form.across ? row : column;
      take(row * form.columns + column, begin + outer * leading_bytes, inner);
    }
}

// All threads come with their pointer; the last one runs `act(the first thread's matrix)`.
template <class Act>
void meet_over(const char* operation, const WmmaForm& form, const void* matrix, const void* memory, unsigned leading,
               Act act) {
  require_32_threads("WMMA");
  const auto own = reinterpret_cast<uintptr_t>(matrix), place = reinterpret_cast<uintptr_t>(memory);
  const uint32_t words[] = {static_cast<uint32_t>(own),   static_cast<uint32_t>(own >> 32),
                            static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32), leading};
  meet(operation, words, 5, [&](auto& of, auto&) {
    for (unsigned lane = 0; lane < kWarpSize; lane++)
      fail_unless(std::equal(of[lane] + 2, of[lane] + 5, words + 2),
                  "the threads of a warp give WMMA different pointers or leading dimensions");
    if (place % kAlignment != 0) fail_misaligned(memory, kAlignment, 0);
    fail_unless(size_t(leading) * form.bits / 8 % kAlignment == 0,
                "WMMA's leading dimension is not a multiple of 16 bytes");
    act(reinterpret_cast<void*>(of[0][0] | uintptr_t(of[0][1]) << 32));
  });
}

int32_t element_in_memory(const WmmaForm& form, const char* row, unsigned number) {
  if (form.bits == 32) {
    int32_t value;
    memcpy(&value, row + 4 * number, 4);
    return value;
  }
  const unsigned per_byte = 8 / form.bits;  // of two 4-bit values the lower half of the byte holds the first
  const uint32_t byte = static_cast<unsigned char>(row[number / per_byte]);
  const uint32_t raw = byte << (32 - form.bits - number % per_byte * form.bits);
  return form.is_signed ? static_cast<int32_t>(raw) >> (32 - form.bits) : static_cast<int32_t>(raw >> (32 - form.bits));
}

}  // namespace

void wmma_load(WmmaForm form, void* matrix, const void* memory, unsigned leading) {
  const char* begin = static_cast<const char*>(memory);
  meet_over("load_matrix_sync", form, matrix, memory, leading, [&](void* first) {
    each_element(form, begin, leading, false, [&](unsigned place, const char* row, unsigned number) {
      const int32_t value = element_in_memory(form, row, number);
      if (form.bits == 32) static_cast<int32_t*>(first)[place] = value;
      else static_cast<int16_t*>(first)[place] = static_cast<int16_t>(value);
    });
  });
}

void wmma_store(WmmaForm form, const int32_t* matrix, void* memory, unsigned leading) {
  char* begin = static_cast<char*>(memory);
  meet_over("store_matrix_sync", form, matrix, memory, leading, [&](void* first) {
    each_element(form, begin, leading, true, [&](unsigned place, char* row, unsigned number) {
      memcpy(row + 4 * number, static_cast<const int32_t*>(first) + place, 4);
    });
  });
}

void wmma_multiply(unsigned m, unsigned n, unsigned k, int32_t* d, const int16_t* a, const int16_t* b,
                   const int32_t* c) {
  if (!first_lane()) return;
  for (unsigned row = 0; row < m; row++)
    for (unsigned column = 0; column < n; column++) {
      int32_t sum = 0;
      for (unsigned i = 0; i < k; i++) sum += int32_t(a[row * k + i]) * b[column * k + i];
      const uint32_t before = static_cast<uint32_t>(c[row * n + column]);
      d[row * n + column] = static_cast<int32_t>(before + static_cast<uint32_t>(sum));  // wraps around
    }
}

void wmma_fill(int32_t* matrix, unsigned elements, int32_t value) {
  if (first_lane()) std::fill_n(matrix, elements, value);
}

}  // namespace emulator
