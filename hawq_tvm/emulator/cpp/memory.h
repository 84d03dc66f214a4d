// The device's memory: buffers that stand apart from one another in a range of addresses of their own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr size_t kPage = 4096;  // of the host, the least that it can guard
constexpr unsigned char kPoison = 0xA5;  // what fresh memory holds

struct Buffer {
  uintptr_t begin, end;            // what was asked for
  uintptr_t first_page, end_page;  // with the pages around it that no one may touch
  uint32_t* stamps;                // two a byte, of launches with checks; nullptr until the first one
  bool stamped;                    // in this launch
};

// A buffer of that many bytes at a multiple of 256, poisoned; nullptr where the device is full.
void* device_malloc(size_t bytes);
bool device_free(void* pointer);  // false: no buffer begins there
void set_device_memory(size_t bytes);
size_t device_memory();
size_t device_memory_free();

bool is_device_address(const void* address);
// The buffer that an address lies in, or beside; nullptr where there is none.
Buffer* find_buffer(const void* address);
void reserve_stamps(Buffer& buffer);
// Clears what launches with checks left behind.
void clear_stamps();

// Whether bytes around the buffers, which page protection cannot guard, are as they were; else the buffer's begin.
const void* first_trampled_buffer();

}  // namespace emulator
