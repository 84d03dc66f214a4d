// PTX instructions. Sections named are those of NVIDIA's "Parallel Thread Execution ISA", version 8 and later.
#include "ptx.h"

#include <algorithm>
#include <cstring>

#include "block.h"
#include "shadow.h"

namespace emulator {

namespace {

// Each register of a fragment holds 4 bytes of one row; the 4 threads of a group hold 16 bytes side by side.
constexpr unsigned kGroup = 4;
constexpr unsigned kColumns = 8;  // N
constexpr unsigned kMostRows = 16, kMostDepth = 64;

int16_t element(uint32_t word, unsigned number, unsigned bits, bool is_signed) {
  const uint32_t raw = word >> (number * bits) & ((1u << bits) - 1);
  return is_signed ? static_cast<int16_t>(static_cast<int32_t>(raw << (32 - bits)) >> (32 - bits))
                   : static_cast<int16_t>(raw);
}

// A row of A, or a column of B, from the registers of its group. "Matrix Fragments for mma.m8n8k16", "m8n8k32",
// "m16n8k16", "m16n8k32", "m16n8k64": element i of register r of thread t in a group lies at depth
// 16 bytes * (r's block) + 4 bytes * t + i.
void gather(const uint32_t words[][16], unsigned group, unsigned first_register, unsigned register_stride,
            const MmaForm& form, bool is_signed, int16_t* row) {
  const unsigned per_word = 32 / form.bits;
  const unsigned blocks = form.depth / (per_word * kGroup);
  for (unsigned block = 0; block < blocks; block++)
    for (unsigned t = 0; t < kGroup; t++) {
      const uint32_t word = words[group * kGroup + t][first_register + block * register_stride];
      for (unsigned i = 0; i < per_word; i++)
        row[(block * kGroup + t) * per_word + i] = element(word, i, form.bits, is_signed);
    }
}

// The product of `rows` rows of A with 8 columns of B. Sums wrap around, as without .satfinite they do on the GPU.
void multiply(const int16_t a[][kMostDepth], const int16_t b[][kMostDepth], unsigned rows, unsigned depth,
              int32_t* product) {
  for (unsigned row = 0; row < rows; row++)
    for (unsigned column = 0; column < kColumns; column++) {
      int32_t sum = 0;
      for (unsigned k = 0; k < depth; k += 16)
        for (unsigned i = 0; i < 16; i++) sum += int32_t(a[row][k + i]) * b[column][k + i];
      product[row * kColumns + column] = sum;
    }
}

Registers registers_of(const uint32_t* result) {
  Registers registers;
  std::copy_n(result, 4, registers.word);
  return registers;
}

}  // namespace

Registers mma_sync(MmaForm form, MmaOperands operands) {
  // Registers of A: for 16 rows, those of rows g and g + 8 take turns ("Matrix Fragments for mma.m16n8k32", Figure).
  const unsigned halves = form.rows / 8;
  const unsigned blocks = form.depth / (32 / form.bits * kGroup);
  const unsigned a_count = halves * blocks, b_count = blocks, c_count = 2 * halves;
  uint32_t words[10];
  std::copy_n(operands.a, a_count, words);
  std::copy_n(operands.b, b_count, words + a_count);
  std::copy_n(operands.c, c_count, words + a_count + b_count);
  require_32_threads("mma.sync");

  const uint32_t* result = meet("mma.sync", words, a_count + b_count + c_count, [&](auto& of, auto& results) {
    alignas(64) int16_t a[kMostRows][kMostDepth], b[kColumns][kMostDepth];
    int32_t product[kMostRows * kColumns];
    for (unsigned group = 0; group < 8; group++) {
      for (unsigned half = 0; half < halves; half++)
        gather(of, group, half, halves, form, form.a_signed, a[half * 8 + group]);
      gather(of, group, a_count, 1, form, form.b_signed, b[group]);
    }
    multiply(a, b, form.rows, form.depth, product);
    // C and D: register i of thread t in group g holds row g + 8 * (i / 2), column 2 * t + i % 2.
    for (unsigned lane = 0; lane < kWarpSize; lane++)
      for (unsigned i = 0; i < c_count; i++) {
        const unsigned row = lane / kGroup + 8 * (i / 2), column = 2 * (lane % kGroup) + i % 2;
        results[lane][i] = of[lane][a_count + b_count + i] + static_cast<uint32_t>(product[row * kColumns + column]);
      }
  });
  return registers_of(result);
}

// "Warp-level matrix load instruction: ldmatrix": threads 8m to 8m + 7 give the addresses of the rows of matrix m;
// thread l receives the elements 2 * (l % 4) and the next of row l / 4; transposed, row and column change places.
Registers ldmatrix(unsigned count, bool transposed, uint32_t shared_address) {
  constexpr unsigned kRow = 16;
  require_32_threads("ldmatrix");
  const uint32_t words[] = {shared_address};
  const uint32_t* result = meet("ldmatrix", words, 1, [&](auto& of, auto& results) {
    Block& block = *running;
    Thread* const last = block.current;
    Thread* const warp = last - last->lane();
    const char* rows[kWarpSize];
    for (unsigned giver = 0; giver < 8 * count; giver++) {
      block.current = warp + giver;  // whom a failure names
      rows[giver] = from_shared_address(of[giver][0], kRow);
      if (of[giver][0] % kRow != 0) fail_misaligned(rows[giver], kRow, 0);
    }
    for (unsigned lane = 0; lane < kWarpSize; lane++) {
      block.current = warp + lane;
      for (unsigned matrix = 0; matrix < count; matrix++) {
        const unsigned outer = lane / 4, inner = 2 * (lane % 4);
        auto* loaded = reinterpret_cast<char*>(&results[lane][matrix]);
        const auto take = [&](unsigned row, unsigned column, unsigned bytes, char* into) {
          const char* from = rows[8 * matrix + row] + 2 * column;
          check_read(from, bytes, 1);
          memcpy(into, from, bytes);
        };
        if (transposed) {
          take(inner, outer, 2, loaded);
          take(inner + 1, outer, 2, loaded + 2);
        } else {
          take(outer, inner, 4, loaded);
        }
      }
    }
    block.current = last;
  });
  return registers_of(result);
}

// ---- cp.async: "Data Movement and Conversion Instructions: Asynchronous copy" ---------------------------------------

// The GPU may make the copy at any time from here to the wait that covers it. Here it is made in that wait, and until
// then nobody may touch the bytes: a kernel that relies on an earlier time is caught.
void cp_async(uint32_t shared_address, const void* source, unsigned bytes, unsigned source_bytes) {
  char* destination = from_shared_address(shared_address, bytes);
  if (shared_address % bytes != 0) fail_misaligned(destination, bytes, 0);
  if (source_bytes > bytes) fail(Failure::launch_failure, "cp.async of %u bytes from %u", bytes, source_bytes);
  if (source_bytes > 0) check_read(source, source_bytes, bytes);
  begin_async_write(destination, bytes);
  Thread& thread = current_thread();
  const char* from = static_cast<const char*>(source);
  thread.async_copies.push_back({destination, from, bytes, source_bytes, thread.async_group});
}

void cp_async_commit_group() { current_thread().async_group++; }

namespace {

void finish_groups_before(unsigned group) {
  Thread& thread = current_thread();
  const auto make = [](const AsyncCopy& copy) {
    memcpy(copy.destination, copy.source, copy.source_bytes);
    memset(copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    land_async_write(copy.destination, copy.bytes);
  };
  auto& copies = thread.async_copies;
  const auto first_left =
      std::find_if(copies.begin(), copies.end(), [group](const AsyncCopy& copy) { return copy.group >= group; });
  std::for_each(copies.begin(), first_left, make);
  copies.erase(copies.begin(), first_left);
}

}  // namespace

void cp_async_wait_group(unsigned newest_left) {
  const unsigned committed = current_thread().async_group;
  if (committed > newest_left) finish_groups_before(committed - newest_left);
}

void cp_async_wait_all() {
  cp_async_commit_group();
  cp_async_wait_group(0);
}

// ---- addresses in the .shared state space ---------------------------------------------------------------------------

char* from_shared_address(uint32_t address, size_t bytes) {
  const Block& block = *running;
  if (address + bytes > block.shared_bytes)
    fail(Failure::illegal_address, "access to %zu bytes at byte %u of shared memory, which has %zu", bytes, address,
         block.shared_bytes);
  return block.shared + address;
}

uint32_t to_shared_address(const void* pointer) {
  const size_t offset = static_cast<const char*>(pointer) - running->shared;
  if (offset > running->shared_bytes)
    fail(Failure::illegal_address, "the shared address of %s", describe_address(pointer).c_str());
  return offset;
}

}  // namespace emulator
