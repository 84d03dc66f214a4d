// A launch: the blocks of a grid side by side on the cores, the threads of each in turn.
#include "machine.h"

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>

#include "api.h"
#include "block.h"
#include "memory.h"
#include "shadow.h"

namespace emulator {

__thread Block* running __attribute__((tls_model("initial-exec")));

// ---- failures -------------------------------------------------------------------------------------------------------

namespace {

std::mutex failure_lock;
std::atomic<int> failure;
std::string failure_message;

void report(const Launch& launch, Failure kind, const std::string& message) {
  std::lock_guard<std::mutex> guard(failure_lock);
  if (failure != 0) return;
  failure_message = std::string("kernel '") + launch.kernel->name + "', " + message;
  failure = static_cast<int>(kind);
}

std::string place(const Block& block) {
  char text[160];
  const Index& b = block.index;
  const Index& t = block.current->index;
  snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u): ", b.x, b.y, b.z, t.x, t.y, t.z);
  return text;
}

}  // namespace

void fail(Failure kind, const char* format, ...) {
  char text[700];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  Block& block = *running;
  report(*block.launch, kind, place(block) + text);
  switch_context(block.current->context, block.scheduler);  // which does not come back
  __builtin_unreachable();
}

void unsupported(const char* what) { fail(Failure::launch_failure, "the emulator does not know %s", what); }

// ---- what threads ask -----------------------------------------------------------------------------------------------

Index thread_index() { return current_thread().index; }
Index block_index() { return running->index; }
Index block_size() { return running->launch->block; }
Index grid_size() { return running->launch->grid; }
char* shared_memory() { return running->shared; }

void give_way(State state) {
  Thread& thread = current_thread();
  thread.state = state;
  switch_context(thread.context, running->scheduler);
}

void block_barrier() { give_way(State::at_barrier); }

namespace {

void require_full_warp(uint32_t mask, const char* operation) {
  const uint32_t all = active_mask();
  if ((mask & all) != all) fail(Failure::launch_failure, "%s of a part of a warp (mask 0x%08x)", operation, mask);
}

}  // namespace

void warp_barrier(uint32_t mask) {
  require_full_warp(mask, "__syncwarp");
  const unsigned warp = current_thread().warp();
  meet("__syncwarp", nullptr, 0, [warp](auto&, auto&) { pass_warp_barrier(*running, warp); });
}

uint32_t shuffle(Shuffle kind, uint32_t mask, uint32_t value, int operand, int width) {
  require_full_warp(mask, "__shfl_sync");
  // CUDA C++ Programming Guide, "Warp Shuffle Functions": outside of its section a thread gets its own value.
  const uint32_t words[] = {value};
  const Thread& thread = current_thread();
  const int lane = thread.lane(), first = lane / width * width;
  int source = lane;
  switch (kind) {
    case Shuffle::index: source = first + (operand & (width - 1)); break;
    case Shuffle::up: source = lane - operand; break;
    case Shuffle::down: source = lane + operand; break;
    case Shuffle::exclusive_or: source = lane ^ operand; break;
  }
  const bool outside = source < first || source >= first + width;
  const int lanes = running->warps[thread.warp()].lanes;
  const uint32_t from = outside ? lane : source;
  if (static_cast<int>(from) >= lanes) fail(Failure::launch_failure, "__shfl_sync reads lane %u of %d", from, lanes);
  // Every thread picks its own word, so the result is the words themselves, one meeting for all.
  const unsigned side = running->warps[thread.warp()].generation & 1;
  meet("__shfl_sync", words, 1, [](auto&, auto&) {});
  return running->warps[current_thread().warp()].words[side][from][0];
}

uint32_t ballot(uint32_t mask, bool predicate) {
  require_full_warp(mask, "__ballot_sync");
  const uint32_t words[] = {predicate};
  const unsigned lanes = running->warps[current_thread().warp()].lanes;
  return meet("__ballot_sync", words, 1, [lanes](auto& w, auto& results) {
    uint32_t votes = 0;
    for (unsigned lane = 0; lane < lanes; lane++) votes |= w[lane][0] << lane;
    for (unsigned lane = 0; lane < lanes; lane++) results[lane][0] = votes;
  })[0];
}

uint32_t active_mask() {
  const unsigned lanes = running->warps[current_thread().warp()].lanes;
  return lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
}

// ---- one block ------------------------------------------------------------------------------------------------------

namespace {

void thread_main() {
  running->launch->kernel->call(running->launch->arguments);
  for (;;) give_way(State::ended);
}

// The order in which threads get their turn: 0 as they are numbered, 1 backwards, from 2 on shuffled anew at each turn.
class Order {
 public:
  Order(unsigned order, unsigned threads, uint32_t block)
      : order_(order), state_(order * 2654435761u + block * 97 + 7) {
    turns_.resize(threads);
    std::iota(turns_.begin(), turns_.end(), 0u);
    if (order == 1) std::reverse(turns_.begin(), turns_.end());
  }

  const std::vector<unsigned>& next_turns() {
    if (order_ >= 2)
      for (size_t i = turns_.size() - 1; i > 0; i--) std::swap(turns_[i], turns_[random() % (i + 1)]);
    return turns_;
  }

 private:
  uint32_t random() {  // Numerical Recipes, "Quick and Dirty Generators"
    state_ = state_ * 1664525u + 1013904223u;
    return state_ >> 8;
  }

  unsigned order_;
  uint32_t state_;
  std::vector<unsigned> turns_;
};

void start_block(Block& block, uint32_t number) {
  const Launch& launch = *block.launch;
  const unsigned threads = block.threads.size();
  block.number = number;
  block.index = {number % launch.grid.x, number / launch.grid.x % launch.grid.y,
                 number / (launch.grid.x * launch.grid.y)};
  memset(block.shared, kPoison, block.shared_bytes);
  forget_shared_accesses(block);
  for (unsigned i = 0; i < threads; i++) {
    Thread& thread = block.threads[i];
    thread.linear = i;
    thread.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / (launch.block.x * launch.block.y)};
    thread.state = State::ready;
    thread.async_group = 0;
    thread.async_copies.clear();
    block.stacks->start(i, thread_main, thread.context);
  }
  for (unsigned w = 0; w < block.warps.size(); w++) {
    Warp& warp = block.warps[w];
    warp.lanes = std::min(kWarpSize, threads - w * kWarpSize);
    warp.arrived = warp.generation = 0;
  }
}

bool may_go_on(const Block& block, const Thread& thread) {
  return thread.state == State::ready || (thread.state == State::at_warp_operation &&
                                          block.warps[thread.warp()].generation == thread.awaited_generation);
}

void describe_standstill(Block& block) {
  unsigned ended = 0, at_barrier = 0;
  Thread* in_warp = nullptr;
  for (Thread& thread : block.threads) {
    ended += thread.state == State::ended;
    at_barrier += thread.state == State::at_barrier;
    if (thread.state == State::at_warp_operation) in_warp = &thread;
  }
  Thread* shown = in_warp;
  for (Thread& thread : block.threads)
    if (!shown && thread.state == State::at_barrier) shown = &thread;
  block.current = shown;
  char text[300];
  if (in_warp) {
    snprintf(text, sizeof text, "threads of one warp diverge: this one waits at %s, which others of it never reach",
             block.warps[in_warp->warp()].operation);
  } else {
    snprintf(text, sizeof text, "threads diverge at a barrier: %u wait there, %u of %zu have ended", at_barrier, ended,
             block.threads.size());
  }
  report(*block.launch, Failure::launch_failure, place(block) + text);
}

void run_block(Block& block, uint32_t number) {
  start_block(block, number);
  Order order(block.launch->order, block.threads.size(), number);
  for (;;) {
    const std::vector<unsigned>& turns = order.next_turns();
    unsigned ended = 0, at_barrier = 0;
    for (bool progress = true; progress;) {
      progress = false;
      ended = at_barrier = 0;
      for (unsigned turn : turns) {
        Thread& thread = block.threads[turn];
        if (may_go_on(block, thread)) {
          thread.state = State::ready;
          block.current = &thread;
          switch_context(block.scheduler, thread.context);
          if (failure != 0) return;
          progress = true;
        }
        ended += thread.state == State::ended;
        at_barrier += thread.state == State::at_barrier;
      }
    }
    if (ended == block.threads.size()) return finish_async_copies(block);
    if (at_barrier != block.threads.size()) return describe_standstill(block);
    for (Thread& thread : block.threads) thread.state = State::ready;
    pass_barrier(block);
  }
}

// ---- faults ---------------------------------------------------------------------------------------------------------

// Where the compiler does not report accesses, and for pointers into nowhere, the pages that no one may touch do. Where
// it can prove that a text is undefined, clang leaves an illegal instruction.
constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
struct sigaction before_faults[std::size(kFaults)];

void on_fault(int signal, siginfo_t* info, void*) {
  Block* block = running;
  if (!block || !block->current) {  // not ours: as if we were not here
    for (size_t i = 0; i < std::size(kFaults); i++)
      if (kFaults[i] == signal) sigaction(signal, &before_faults[i], nullptr);
    return;
  }
  const bool by_address = signal == SIGSEGV || signal == SIGBUS;
  const std::string what = by_address ? "access to " + describe_address(info->si_addr)
                                      : std::string("something that C++ leaves undefined: ") + strsignal(signal);
  report(*block->launch, by_address ? Failure::illegal_address : Failure::launch_failure, place(*block) + what);
  siglongjmp(block->fault, 1);
}

class FaultHandlers {
 public:
  FaultHandlers() {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (size_t i = 0; i < std::size(kFaults); i++) sigaction(kFaults[i], &action, &before_faults[i]);
  }
  ~FaultHandlers() {
    for (size_t i = 0; i < std::size(kFaults); i++) sigaction(kFaults[i], &before_faults[i], nullptr);
  }
};

// ---- a grid ---------------------------------------------------------------------------------------------------------

void work(const Launch& launch, std::atomic<uint64_t>& next, uint64_t blocks) {
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  std::vector<char> signal_stack(64 * 1024);
  stack_t alternate{}, before{};
  alternate.ss_sp = signal_stack.data();
  alternate.ss_size = signal_stack.size();
  sigaltstack(&alternate, &before);
  {
    Stacks stacks(threads);
    Block block{};
    block.launch = &launch;
    block.threads.resize(threads);
    block.warps.resize((threads + kWarpSize - 1) / kWarpSize);
    block.stacks = &stacks;
    block.shared_bytes = launch.kernel->dynamic_offset + launch.dynamic_shared;
    constexpr size_t kSharedAlignment = 1024;
    std::vector<char> arena(block.shared_bytes + kSharedAlignment + 2 * kSharedMargin);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(arena.data()) + kSharedMargin + kSharedAlignment - 1;
    block.shared = reinterpret_cast<char*>(begin & ~(kSharedAlignment - 1));
    if (launch.kernel->checked) prepare_shadow(block);
    running = &block;
    if (sigsetjmp(block.fault, 1) == 0)
      for (uint64_t number; failure == 0 && (number = next++) < blocks;) run_block(block, number);
    running = nullptr;
  }
  sigaltstack(&before, nullptr);
}

std::string refuse(const Kernel& kernel, const Index& grid, const Index& block) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  const unsigned most = kernel.max_threads ? kernel.max_threads : kMaxThreads;
  if (threads == 0 || uint64_t(grid.x) * grid.y * grid.z == 0) return "a launch without threads";
  if (threads > most) return std::to_string(threads) + " threads a block, of at most " + std::to_string(most);
  return "";
}

// Each guarded stack takes two of the mappings that Linux grants a process (vm.max_map_count, 65,530 unless raised).
constexpr uint64_t kMostWorkers = 16;

// One launch at a time, and no buffer comes or goes while it runs.
std::mutex api_lock;

int launch_grid(const Launch& launch, unsigned workers, char* message, size_t message_bytes) {
  failure = 0;
  failure_message.clear();
  const std::string refusal = refuse(*launch.kernel, launch.grid, launch.block);
  if (!refusal.empty()) {
    report(launch, Failure::launch_failure, refusal);
  } else {
    const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    std::atomic<uint64_t> next{0};
    FaultHandlers handlers;
    std::vector<std::thread> cores;
    for (uint64_t i = 0; i < std::min({uint64_t(workers), blocks, kMostWorkers}); i++)
      cores.emplace_back([&] { work(launch, next, blocks); });
    for (std::thread& core : cores) core.join();
    if (const void* trampled = failure ? nullptr : first_trampled_buffer())
      report(launch, Failure::illegal_address, "it wrote beside " + describe_buffer(launch, trampled));
  }
  if (launch.kernel->checked) clear_stamps();
  snprintf(message, message_bytes, "%s", failure_message.c_str());
  return failure;
}

}  // namespace

}  // namespace emulator

using namespace emulator;

extern "C" int emulator_launch(const Kernel* kernel, const unsigned* grid, const unsigned* block,
                               size_t dynamic_shared, void* const* arguments, unsigned order, unsigned workers,
                               char* message, size_t message_bytes) {
  std::lock_guard<std::mutex> guard(api_lock);
  const Launch launch{kernel,    {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, dynamic_shared,
                      arguments, order};
  return launch_grid(launch, workers, message, message_bytes);
}

extern "C" void* emulator_malloc(size_t bytes) {
  std::lock_guard<std::mutex> guard(api_lock);
  return device_malloc(bytes ? bytes : 1);
}

extern "C" int emulator_free(void* pointer) {
  std::lock_guard<std::mutex> guard(api_lock);
  return device_free(pointer);
}
