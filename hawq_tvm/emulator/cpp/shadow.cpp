// Every access of a kernel comes here: the compiler reports those of the text (instrumentation.cpp), the emulated PTX
// and WMMA instructions report their own.
//
// Shared memory. The block has a clock, its tick, that moves on whenever threads meet: all at a barrier, a warp at
// __syncwarp. Each byte has two stamps, of the last write and of the reads: the tick and a code of who it was. An
// access is ordered after a stamped one if the same thread made it, or if a barrier of the block, or a __syncwarp of
// the warp that both are in, came between. Two accesses of which one writes and which are not ordered are a race. This
// does not depend on the order in which the threads really ran.
//
// Global memory. Within one launch nothing orders two blocks. Each byte has two stamps, of the block that wrote it and
// of those that read it; where one block writes, another may neither read nor write.
#include "shadow.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "memory.h"

namespace emulator {

namespace {

// ---- stamps of shared memory: the tick above, who below -------------------------------------------------------------

constexpr uint32_t kCodeBits = 12;
constexpr uint32_t kCodes = (1u << kCodeBits) - 1;
constexpr uint32_t kLastTick = (1u << (32 - kCodeBits)) - 2;
// Codes: a thread's number; then, where several threads of one warp made it, or several warps, a cp.async will, or it
// was atomic.
constexpr uint32_t kWarpCode = kMaxThreads;
constexpr uint32_t kSeveralWarps = kWarpCode + kMaxThreads / kWarpSize;
constexpr uint32_t kInFlight = kSeveralWarps + 1;
constexpr uint32_t kAtomic = kInFlight + 1;
constexpr uint32_t kGap = ~0u;  // a write stamp: the byte lies between two arrays

uint32_t stamp(uint32_t tick, uint32_t code) { return tick << kCodeBits | code; }
uint32_t tick_of(uint32_t stamp) { return stamp >> kCodeBits; }
uint32_t code_of(uint32_t stamp) { return stamp & kCodes; }

// The warp of a code, or a number that no warp has.
uint32_t warp_of(uint32_t code) {
  if (code < kWarpCode) return code / kWarpSize;
  return code < kSeveralWarps ? code - kWarpCode : ~0u;
}

bool ordered(uint32_t before, const Block& block, uint32_t code) {
  if (tick_of(before) < block.barrier_tick || code_of(before) == code) return true;
  const uint32_t warp = warp_of(code);
  return warp_of(code_of(before)) == warp && tick_of(before) < block.warps[warp].sync_tick;
}

// The stamp of reads, with one more.
uint32_t with_read(uint32_t before, const Block& block, uint32_t code) {
  if (tick_of(before) < block.barrier_tick || code_of(before) == code) return stamp(block.tick, code);
  const uint32_t warp = warp_of(code);
  return stamp(block.tick, warp_of(code_of(before)) == warp ? kWarpCode + warp : kSeveralWarps);
}

// ---- sentences ------------------------------------------------------------------------------------------------------

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
  char line[400];
  va_list values;
  va_start(values, format);
  vsnprintf(line, sizeof line, format, values);
  va_end(values);
  return line;
}

std::string elements(const char* name, ptrdiff_t offset, size_t bytes, unsigned element) {
  if (element == 0) element = 1;
  const ptrdiff_t index = offset >= 0 ? offset / element : -((-offset + element - 1) / element);
  return text("%s[%td] (%zu elements of %u bytes; byte %td of %zu)", name, index, bytes / element, element, offset,
              bytes);
}

std::string describe_shared(const Block& block, const char* address) {
  const Kernel& kernel = *block.launch->kernel;
  const ptrdiff_t offset = address - block.shared;
  if (offset >= kernel.dynamic_offset)
    return "dynamic shared memory " + elements("", offset - kernel.dynamic_offset, block.launch->dynamic_shared, 1);
  const SharedArray* nearest = nullptr;
  for (unsigned i = 0; i < kernel.shared_array_count; i++)  // the last that begins before: gaps follow their array
    if (kernel.shared_arrays[i].offset <= offset) nearest = &kernel.shared_arrays[i];
  if (!nearest) return text("shared memory, byte %td", offset);
  return "shared " + elements(nearest->name, offset - nearest->offset, nearest->bytes, nearest->element_bytes);
}

std::string who(const Block& block, uint32_t code) {
  if (code == kSeveralWarps) return "threads of several warps";
  if (code == kAtomic) return "an atomic function of some thread";
  if (code >= kWarpCode) return text("threads of warp %u", code - kWarpCode);
  const Index& t = block.threads[code].index;
  return text("thread (%u, %u, %u)", t.x, t.y, t.z);
}

[[noreturn]] void fail_race(const char* access, const char* address, const char* before, uint32_t stamp) {
  const Block& block = *running;
  const std::string place = describe_shared(block, address);
  if (code_of(stamp) == kInFlight)
    fail(Failure::launch_failure, "race: it %s %s, which a cp.async is still writing: no wait_group of the thread that "
         "started it has come", access, place.c_str());
  fail(Failure::launch_failure, "race: it %s %s, which %s %s with no barrier between", access, place.c_str(),
       who(block, code_of(stamp)).c_str(), before);
}

// ---- shared memory --------------------------------------------------------------------------------------------------

// Beside shared memory counts too: an access there is meant for it.
bool in_shared(const Block& block, const char* address) {
  return static_cast<size_t>(address - block.shared + kSharedMargin) < block.shared_bytes + 2 * kSharedMargin;
}

void check_shared_bounds(const Block& block, const char* address, size_t bytes, const char* access) {
  const size_t offset = address - block.shared;
  bool outside = offset > block.shared_bytes || offset + bytes > block.shared_bytes;
  if (!outside && !block.shadow.empty())
    outside = block.shadow[offset].write == kGap || block.shadow[offset + bytes - 1].write == kGap;
  if (outside)
    fail(Failure::illegal_address, "%s of %zu bytes out of bounds at %s", access, bytes,
         describe_shared(block, address).c_str());
}

void read_shared(Block& block, const char* address, size_t bytes, uint32_t code) {
  check_shared_bounds(block, address, bytes, "read");
  if (block.shadow.empty()) return;
  SharedCell* cell = &block.shadow[address - block.shared];
  for (size_t i = 0; i < bytes; i++, cell++) {
    if (code_of(cell->write) == kInFlight || !ordered(cell->write, block, code))
      fail_race("reads", address + i, "wrote", cell->write);
    cell->read = with_read(cell->read, block, code);
  }
}

void write_shared(Block& block, const char* address, size_t bytes, uint32_t code) {
  check_shared_bounds(block, address, bytes, "write");
  if (block.shadow.empty()) return;
  SharedCell* cell = &block.shadow[address - block.shared];
  for (size_t i = 0; i < bytes; i++, cell++) {
    if (code_of(cell->write) == kInFlight || !ordered(cell->write, block, code))
      fail_race("writes", address + i, "wrote", cell->write);
    if (!ordered(cell->read, block, code)) fail_race("writes", address + i, "read", cell->read);
    cell->write = stamp(block.tick, code);
  }
}

// ---- global memory --------------------------------------------------------------------------------------------------

std::string describe_global(const Launch& launch, const Buffer& buffer, uintptr_t address) {
  const Kernel& kernel = *launch.kernel;
  for (unsigned i = 0; i < kernel.parameter_count; i++) {
    const Parameter& parameter = kernel.parameters[i];
    if (parameter.element_bytes == 0) continue;
    const uintptr_t pointer = *static_cast<const uintptr_t*>(launch.arguments[i]);
    if (pointer >= buffer.begin && pointer <= buffer.end)
      return elements(parameter.name, static_cast<ptrdiff_t>(address - pointer), buffer.end - pointer,
                      parameter.element_bytes);
  }
  return "a buffer that is no argument, " + elements("", address - buffer.begin, buffer.end - buffer.begin, 1);
}

[[noreturn]] void fail_global(const char* access, size_t bytes, const char* address) {
  fail(Failure::illegal_address, "%s of %zu bytes out of bounds at %s", access, bytes,
       describe_address(address).c_str());
}

// Stamps of global memory: the number of a block, plus 1; or one of these.
constexpr uint32_t kSeveralBlocks = ~0u, kAtomicBlocks = ~0u - 1;

[[noreturn]] void fail_between_blocks(const char* access, uintptr_t address, const Buffer& buffer, const char* before,
                                      uint32_t other) {
  const std::string place = describe_global(*running->launch, buffer, address);
  const std::string whom = other == kSeveralBlocks  ? "several blocks"
                           : other == kAtomicBlocks ? "an atomic function of some block"
                                                    : text("block number %u", other - 1);
  fail(Failure::launch_failure, "race: it %s %s, which %s %s in the same launch", access, place.c_str(), whom.c_str(),
       before);
}

// A byte's stamp of reads, with one more block.
void stamp_read(uint32_t& read, uint32_t mine) {
  uint32_t before = __atomic_load_n(&read, __ATOMIC_SEQ_CST);
  while (before != mine && before != kSeveralBlocks) {
    const uint32_t after = before == 0 ? mine : kSeveralBlocks;
    if (__atomic_compare_exchange_n(&read, &before, after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return;
  }
}

// Blocks run side by side. Each leaves its own stamp before it looks at the other's, so that of two that race at least
// one sees the other.
void stamp_global(Buffer& buffer, uintptr_t address, size_t bytes, bool write, uint32_t mine) {
  if (!__atomic_load_n(&buffer.stamps, __ATOMIC_ACQUIRE)) reserve_stamps(buffer);
  __atomic_store_n(&buffer.stamped, true, __ATOMIC_RELAXED);
  uint32_t* stamps = buffer.stamps + 2 * (address - buffer.begin);
  for (size_t i = 0; i < bytes; i++, stamps += 2) {
    uint32_t& wrote = stamps[0];
    uint32_t& read = stamps[1];
    uint32_t writer = __atomic_load_n(&wrote, __ATOMIC_SEQ_CST);
    if (write) {
      if (writer != mine) writer = __atomic_exchange_n(&wrote, mine, __ATOMIC_SEQ_CST);
      const uint32_t reader = __atomic_load_n(&read, __ATOMIC_SEQ_CST);
      if (reader != 0 && reader != mine) fail_between_blocks("writes", address + i, buffer, "read", reader);
    } else {
      stamp_read(read, mine);
      writer = __atomic_load_n(&wrote, __ATOMIC_SEQ_CST);
    }
    if (writer != 0 && writer != mine)
      fail_between_blocks(write ? "writes" : "reads", address + i, buffer, "wrote", writer);
  }
}

// ---- any memory -----------------------------------------------------------------------------------------------------

// The buffer that the access lies in, which is most often that of the access before.
Buffer& buffer_of(Block& block, const char* address, size_t bytes, const char* access) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const auto holds = [&](const Buffer* buffer) {
    return buffer && begin - buffer->begin < buffer->end - buffer->begin && bytes <= buffer->end - begin;
  };
  if (holds(block.last_buffer)) return *block.last_buffer;
  Buffer* buffer = find_buffer(address);
  if (!holds(buffer)) fail_global(access, bytes, address);
  block.last_buffer = buffer;
  return *buffer;
}

inline void check(const char* address, size_t bytes, size_t alignment, bool write, uint32_t code) {
  Block& block = *running;
  const char* access = write ? "write" : "read";
  if (reinterpret_cast<uintptr_t>(address) & (alignment - 1))  // a power of two
    fail(Failure::misaligned_address, "misaligned %s of %zu bytes at %s", access, bytes,
         describe_address(address).c_str());
  if (in_shared(block, address)) {
    if (write) write_shared(block, address, bytes, code);
    else read_shared(block, address, bytes, code);
  } else if (!block.stacks->holds(address)) {
    Buffer& buffer = buffer_of(block, address, bytes, access);
    if (block.shadow.empty()) return;
    const uint32_t mine = code == kAtomic ? kAtomicBlocks : block.number + 1;
    stamp_global(buffer, reinterpret_cast<uintptr_t>(address), bytes, write, mine);
  }
}

}  // namespace

// ---- what the machine calls -----------------------------------------------------------------------------------------

void prepare_shadow(Block& block) {
  const Kernel& kernel = *block.launch->kernel;
  block.shadow.assign(block.shared_bytes + 1, SharedCell{0, 0});  // one more: without shared memory it is not empty
  for (uint32_t byte = 0; byte < kernel.dynamic_offset; byte++) block.shadow[byte].write = kGap;
  for (unsigned i = 0; i < kernel.shared_array_count; i++) {
    const SharedArray& array = kernel.shared_arrays[i];
    for (uint32_t byte = 0; byte < array.bytes; byte++) block.shadow[array.offset + byte].write = 0;
  }
  block.tick = block.barrier_tick = 1;
}

void forget_shared_accesses(Block& block) { pass_barrier(block); }

void pass_barrier(Block& block) {
  if (block.tick >= kLastTick && !block.shadow.empty()) prepare_shadow(block);  // the clock starts anew
  block.barrier_tick = ++block.tick;
  for (Warp& warp : block.warps) warp.sync_tick = block.tick;
}

void pass_warp_barrier(Block& block, unsigned warp) {
  if (block.tick >= kLastTick && !block.shadow.empty())
    fail(Failure::launch_failure, "more than %u __syncwarp between two barriers, which the checks cannot count",
         kLastTick);
  block.warps[warp].sync_tick = ++block.tick;
}

void finish_async_copies(Block& block) {
  for (Thread& thread : block.threads) {
    for (const AsyncCopy& copy : thread.async_copies)
      if (!block.shadow.empty())
        for (unsigned i = 0; i < copy.bytes; i++) block.shadow[copy.destination - block.shared + i].write = 0;
    thread.async_copies.clear();
  }
}

void check_read(const void* address, size_t bytes, size_t alignment) {
  check(static_cast<const char*>(address), bytes, alignment, false, current_thread().linear);
}

void check_write(const void* address, size_t bytes, size_t alignment) {
  check(static_cast<const char*>(address), bytes, alignment, true, current_thread().linear);
}

void check_warp_access(const void* address, size_t bytes, size_t alignment, bool write) {
  check(static_cast<const char*>(address), bytes, alignment, write, kWarpCode + current_thread().warp());
}

void check_atomic(const void* address, size_t bytes) {
  check(static_cast<const char*>(address), bytes, bytes, true, kAtomic);
}

void begin_async_write(const void* address, size_t bytes) {
  check_write(address, bytes, bytes);
  Block& block = *running;
  if (block.shadow.empty()) return;
  SharedCell* cell = &block.shadow[static_cast<const char*>(address) - block.shared];
  for (size_t i = 0; i < bytes; i++) cell[i].write = stamp(block.tick, kInFlight);
}

void land_async_write(const void* address, size_t bytes) {
  Block& block = *running;
  if (block.shadow.empty()) return;
  SharedCell* cell = &block.shadow[static_cast<const char*>(address) - block.shared];
  for (size_t i = 0; i < bytes; i++) cell[i].write = stamp(block.tick, current_thread().linear);
}

void fail_misaligned(const void* address, size_t alignment, unsigned line) {
  const std::string where = line ? text(", in line %u of its text", line) : "";
  fail(Failure::misaligned_address, "misaligned access, which needs a multiple of %zu bytes, at %s%s", alignment,
       describe_address(address).c_str(), where.c_str());
}

std::string describe_address(const void* address) {
  const Block& block = *running;
  const char* place = static_cast<const char*>(address);
  if (in_shared(block, place)) return describe_shared(block, place);
  if (const Buffer* buffer = find_buffer(address))
    return describe_global(*block.launch, *buffer, reinterpret_cast<uintptr_t>(address));
  if (is_device_address(address)) return text("%p, where no buffer is", address);
  if (block.stacks->holds(address)) return text("%p, in the thread's own registers or stack", address);
  return text("%p, which is no memory of the device", address);
}

std::string describe_buffer(const Launch& launch, const void* address) {
  const Buffer* buffer = find_buffer(address);
  return describe_global(launch, *buffer, buffer->begin);
}

}  // namespace emulator
