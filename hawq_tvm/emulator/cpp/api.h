// What Python and the emulated driver call.
#pragma once

#include <cstddef>

#include "machine.h"

extern "C" {

// Runs a grid to its end. 0, or the number of a Failure and a sentence in `message`.
// `order`: 0 threads as numbered, 1 backwards, from 2 on shuffled. `workers`: blocks that run side by side.
int emulator_launch(const emulator::Kernel* kernel, const unsigned* grid, const unsigned* block,
                    size_t dynamic_shared, void* const* arguments, unsigned order, unsigned workers, char* message,
                    size_t message_bytes);
void* emulator_malloc(size_t bytes);  // nullptr: the device is full
int emulator_free(void* pointer);     // 0: no buffer begins there

}
