// The functions that compilers call where code is built with -fsanitize=thread and the checks of -fsanitize that
// toolchain.py asks for. g++ and clang agree on these names; we bring the functions ourselves, so that no sanitizer's
// library is needed and failures are told in terms of the kernel.
//
// Calls and their arguments: LLVM's compiler-rt, lib/tsan/rtl/tsan_interface.h and lib/ubsan/ubsan_handlers.h.
#include "block.h"
#include "machine.h"

using emulator::Failure;
using emulator::fail;

// ---- every read and write of memory ---------------------------------------------------------------------------------

// Alignment is left to the check that knows the type that was written in the text.
#define EMULATOR_ACCESS(BYTES)                                                                     \
  extern "C" void __tsan_read##BYTES(void* address) { emulator::check_read(address, BYTES, 1); }   \
  extern "C" void __tsan_write##BYTES(void* address) { emulator::check_write(address, BYTES, 1); } \
  extern "C" void __tsan_unaligned_read##BYTES(void* address) { emulator::check_read(address, BYTES, 1); } \
  extern "C" void __tsan_unaligned_write##BYTES(void* address) { emulator::check_write(address, BYTES, 1); }

EMULATOR_ACCESS(1)
EMULATOR_ACCESS(2)
EMULATOR_ACCESS(4)
EMULATOR_ACCESS(8)
EMULATOR_ACCESS(16)

extern "C" {

void __tsan_read_range(void* address, unsigned long bytes) { emulator::check_read(address, bytes, 1); }
void __tsan_write_range(void* address, unsigned long bytes) { emulator::check_write(address, bytes, 1); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {  // clang's, for copies of whole structs
  emulator::check_read(from, bytes, 1);
  emulator::check_write(to, bytes, 1);
  return __builtin_memcpy(to, from, bytes);
}

void* __tsan_memset(void* to, int value, unsigned long bytes) {
  emulator::check_write(to, bytes, 1);
  return __builtin_memset(to, value, bytes);
}

// ---- what C++ leaves undefined --------------------------------------------------------------------------------------

namespace {

struct SourceLocation {
  const char* file;
  unsigned line, column;
};

struct TypeMismatch {
  SourceLocation place;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

}  // namespace

void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, void* address) {
  const size_t alignment = size_t(1) << data->log_alignment;
  emulator::fail_misaligned(address, alignment, data->place.line);
}

#define EMULATOR_UNDEFINED(NAME, SENTENCE)                                                \
  void __ubsan_handle_##NAME(const SourceLocation* place, void*, void*) {                 \
    fail(Failure::launch_failure, "%s, in line %u of its text", SENTENCE, place->line);   \
  }

EMULATOR_UNDEFINED(out_of_bounds, "an index outside of an array of registers or of shared memory")
EMULATOR_UNDEFINED(shift_out_of_bounds, "a shift by a negative number of bits, or by as many as the value has or more")
EMULATOR_UNDEFINED(divrem_overflow, "a division by zero")
EMULATOR_UNDEFINED(float_cast_overflow, "a float beyond the integer type that it is converted to")

}  // extern "C"
