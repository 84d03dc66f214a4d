// Stacks that give way to one another: how the threads of one block take turns on one core.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(EMULATOR_PORTABLE_FIBERS)
#define EMULATOR_UCONTEXT 1
#include <ucontext.h>
#endif

namespace emulator {

// A point of execution: what must be kept to go on there.
struct Context {
#ifdef EMULATOR_UCONTEXT
  ucontext_t state;
#else
  void* stack_pointer = nullptr;  // the callee-saved registers lie on the stack
#endif
};

// Leave one context and go on in another; returns when somebody switches back.
void switch_context(Context& from, Context& to);

// One stack a thread, with a page under each that no one may touch, so that an overflow ends in a fault.
class Stacks {
 public:
  explicit Stacks(unsigned count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  // The context that enters a function, which never returns, on the stack of that number.
  void start(unsigned number, void (*function)(), Context& context);
  bool holds(const void* address) const;

 private:
  char* base_;
  size_t bytes_;
};

}  // namespace emulator
