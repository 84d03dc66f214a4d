#include "fibers.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "memory.h"

namespace emulator {

namespace {
constexpr size_t kStack = 256 * 1024;  // fragments of WMMA and register arrays are a few KiB each
}  // namespace

Stacks::Stacks(unsigned count) : bytes_(count * kStack) {
  void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    fprintf(stderr, "hawq-tvm emulator: no memory for %u stacks\n", count);
    abort();
  }
  base_ = static_cast<char*>(base);
  for (unsigned i = 0; i < count; i++) mprotect(base_ + i * kStack, kPage, PROT_NONE);
}

Stacks::~Stacks() { munmap(base_, bytes_); }

bool Stacks::holds(const void* address) const {
  return static_cast<size_t>(static_cast<const char*>(address) - base_) < bytes_;
}

#ifdef EMULATOR_UCONTEXT

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

void Stacks::start(unsigned number, void (*function)(), Context& context) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = base_ + number * kStack;
  context.state.uc_stack.ss_size = kStack;
  context.state.uc_link = nullptr;
  makecontext(&context.state, function, 0);
}

#else

// System V ABI, AMD64, "Register Usage": rbx, rbp and r12 to r15 belong to the caller; all others may change.
__attribute__((naked, noinline)) static void switch_stack(void** /* save, in rdi */, void* /* load, in rsi */) {
  asm(R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
  )");
}

void switch_context(Context& from, Context& to) { switch_stack(&from.stack_pointer, to.stack_pointer); }

void Stacks::start(unsigned number, void (*function)(), Context& context) {
  // After the pops and the return, the stack pointer must be 8 off a multiple of 16, as after a call.
  void** top = reinterpret_cast<void**>(base_ + (number + 1) * kStack) - 1;
  *--top = reinterpret_cast<void*>(function);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  context.stack_pointer = top;
}

#endif

}  // namespace emulator
