// The machine's inside: a running block, its warps and its threads.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <vector>

#include "fibers.h"
#include "machine.h"
#include "memory.h"

namespace emulator {

// How a launch ends; the driver tells them as CUDA's errors.
enum class Failure { none = 0, illegal_address, misaligned_address, launch_failure };

struct Launch;

// A copy that cp.async promised: it is made when a wait allows it no further delay.
struct AsyncCopy {
  char* destination;
  const char* source;
  unsigned bytes, source_bytes;
  unsigned group;
};

enum class State : uint8_t { ready, at_barrier, at_warp_operation, ended };

struct Thread {
  Context context;
  Index index;
  unsigned linear;  // within the block, x fastest
  State state;
  unsigned awaited_generation;  // of its warp's meetings
  unsigned async_group;         // the group that is being filled
  std::vector<AsyncCopy> async_copies;

  unsigned warp() const { return linear / kWarpSize; }
  unsigned lane() const { return linear % kWarpSize; }
};

// Where the threads of a warp meet: each leaves words, the last one works on all of them, each takes its result.
// Two sets of words take turns, since the first thread to go on may come to the next meeting before others went on.
struct Warp {
  unsigned lanes, arrived, generation;
  const char* operation;
  uint32_t sync_tick;  // of the last __syncwarp
  uint32_t words[2][kWarpSize][16];
  uint32_t results[2][kWarpSize][4];
};

// What the shadow of a byte of shared memory remembers; `shadow.cpp` explains the stamps.
struct SharedCell {
  uint32_t write, read;
};

constexpr size_t kSharedMargin = 1024;  // on both sides of shared memory, where an index that is wrong may land

struct Block {
  const Launch* launch;
  Index index;
  uint32_t number;  // within the grid
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Stacks* stacks;
  char* shared;
  size_t shared_bytes;  // with the gaps between arrays
  std::vector<SharedCell> shadow;  // empty where accesses are not checked
  Buffer* last_buffer;             // that an access lay in
  uint32_t tick, barrier_tick;  // clock of meetings, and its value at the last barrier
  Context scheduler;
  sigjmp_buf fault;
  Thread* current;
};

struct Launch {
  const Kernel* kernel;
  Index grid, block;
  size_t dynamic_shared;
  void* const* arguments;
  unsigned order;
};

extern __thread Block* running __attribute__((tls_model("initial-exec")));  // of this core

inline Thread& current_thread() { return *running->current; }

// End the launch: the message is completed with the kernel, the block and the thread.
[[noreturn]] void fail(Failure failure, const char* format, ...) __attribute__((format(printf, 2, 3)));

void give_way(State state);

// Of an operation that takes a whole warp, where a block's last one may be smaller.
inline void require_32_threads(const char* operation) {
  if (running->warps[current_thread().warp()].lanes != kWarpSize)
    fail(Failure::launch_failure, "%s in a warp of fewer than 32 threads", operation);
}

// Let the warp meet. `complete(words, results)` runs once, in the thread that comes last.
template <class Complete>
inline const uint32_t* meet(const char* operation, const uint32_t* words, unsigned count, Complete complete) {
  Thread& thread = current_thread();
  Warp& warp = running->warps[thread.warp()];
  const unsigned side = warp.generation & 1;
  if (warp.arrived == 0) {
    warp.operation = operation;
  } else if (warp.operation != operation) {  // each has its own literal
    fail(Failure::launch_failure, "threads of one warp diverge: this one is at %s, another at %s", operation,
         warp.operation);
  }
  for (unsigned i = 0; i < count; i++) warp.words[side][thread.lane()][i] = words[i];
  if (++warp.arrived == warp.lanes) {
    complete(warp.words[side], warp.results[side]);
    warp.arrived = 0;
    warp.generation++;
  } else {
    thread.awaited_generation = warp.generation + 1;
    give_way(State::at_warp_operation);
  }
  return warp.results[side][thread.lane()];
}

}  // namespace emulator
