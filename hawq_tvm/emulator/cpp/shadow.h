// Who touched which byte since threads last met: bounds, alignment and races.
#pragma once

#include <string>

#include "block.h"

namespace emulator {

void prepare_shadow(Block& block);
void forget_shared_accesses(Block& block);  // a new block begins
void pass_barrier(Block& block);            // all of its threads have met
void pass_warp_barrier(Block& block, unsigned warp);
void finish_async_copies(Block& block);     // it has ended

// An access by a whole warp together, as of WMMA: read or write of those bytes.
void check_warp_access(const void* address, size_t bytes, size_t alignment, bool write);

// An atomic update: of these, several may meet.
void check_atomic(const void* address, size_t bytes);

// cp.async: the bytes are in flight from `begin` to `land`, and nobody may touch them.
void begin_async_write(const void* address, size_t bytes);
void land_async_write(const void* address, size_t bytes);

std::string describe_address(const void* address);
std::string describe_buffer(const Launch& launch, const void* address);

}  // namespace emulator
