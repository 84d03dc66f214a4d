#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

namespace emulator {

namespace {

constexpr size_t kAlignment = 256;  // of cudaMalloc: "CUDA C++ Programming Guide", "Device Memory Accesses"
constexpr size_t kRange = size_t(1) << 37;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

class Memory {
 public:
  Memory() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* range = mmap(nullptr, kRange, PROT_NONE, flags, -1, 0);
    void* table = mmap(nullptr, kRange / kPage * sizeof(uint32_t), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (range == MAP_FAILED || table == MAP_FAILED) {
      fprintf(stderr, "hawq-tvm emulator: no %zu GiB of addresses; raise the limit of virtual memory (ulimit -v)\n",
              kRange >> 30);
      abort();
    }
    base_ = reinterpret_cast<uintptr_t>(range);
    page_buffer_ = static_cast<uint32_t*>(table);
    free_pages_[base_] = kRange;
    buffers_.push_back(Buffer{});  // number 0: none
  }

  void* allocate(size_t bytes) {
    if (bytes == 0 || bytes > limit_ - used_) return nullptr;
    const size_t pages = round_up(bytes, kPage) + 2 * kPage;
    auto run = std::find_if(free_pages_.begin(), free_pages_.end(), [&](auto& r) { return r.second >= pages; });
    if (run == free_pages_.end()) return nullptr;
    const uintptr_t first = run->first;
    const size_t left = run->second - pages;
    free_pages_.erase(run);
    if (left) free_pages_[first + pages] = left;
    void* inner = reinterpret_cast<void*>(first + kPage);
    if (mprotect(inner, pages - 2 * kPage, PROT_READ | PROT_WRITE) != 0) return nullptr;
    memset(inner, kPoison, pages - 2 * kPage);

    Buffer buffer{};
    // As near to the page that follows as alignment allows: what runs over the end soon runs into that page.
    buffer.begin = first + pages - kPage - round_up(bytes, kAlignment);
    buffer.end = buffer.begin + bytes;
    buffer.first_page = first;
    buffer.end_page = first + pages;
    uint32_t number;
    if (free_numbers_.empty()) {
      number = buffers_.size();
      buffers_.push_back(buffer);
    } else {
      number = free_numbers_.back();
      free_numbers_.pop_back();
      buffers_[number] = buffer;
    }
    for (uintptr_t page = first; page < buffer.end_page; page += kPage) page_buffer_[(page - base_) / kPage] = number;
    used_ += bytes;
    return reinterpret_cast<void*>(buffer.begin);
  }

  bool free(void* pointer) {
    Buffer* buffer = holds(pointer) ? find(pointer) : nullptr;
    if (!buffer || buffer->begin != reinterpret_cast<uintptr_t>(pointer)) return false;
    used_ -= buffer->end - buffer->begin;
    if (buffer->stamps) munmap(buffer->stamps, stamp_bytes(*buffer));
    const size_t bytes = buffer->end_page - buffer->first_page;
    void* first = reinterpret_cast<void*>(buffer->first_page);
    mprotect(first, bytes, PROT_NONE);  // whoever still holds a pointer is told
    madvise(first, bytes, MADV_DONTNEED);
    free_numbers_.push_back(page_buffer_[(buffer->first_page - base_) / kPage]);
    for (uintptr_t page = buffer->first_page; page < buffer->end_page; page += kPage)
      page_buffer_[(page - base_) / kPage] = 0;
    give_back(buffer->first_page, bytes);
    *buffer = Buffer{};
    return true;
  }

  bool holds(const void* address) const { return reinterpret_cast<uintptr_t>(address) - base_ < kRange; }

  Buffer* find(const void* address) {
    const uint32_t number = page_buffer_[(reinterpret_cast<uintptr_t>(address) - base_) / kPage];
    return number ? &buffers_[number] : nullptr;
  }

  static size_t stamp_bytes(const Buffer& buffer) { return (buffer.end - buffer.begin) * 2 * sizeof(uint32_t); }

  std::deque<Buffer>& buffers() { return buffers_; }
  size_t limit_ = size_t(16) << 30, used_ = 0;

 private:
  void give_back(uintptr_t first, size_t bytes) {
    auto next = free_pages_.lower_bound(first);
    if (next != free_pages_.end() && first + bytes == next->first) {
      bytes += next->second;
      next = free_pages_.erase(next);
    }
    if (next != free_pages_.begin()) {
      auto before = std::prev(next);
      if (before->first + before->second == first) {
        before->second += bytes;
        return;
      }
    }
    free_pages_[first] = bytes;
  }

  uintptr_t base_;
  uint32_t* page_buffer_;  // the number of the buffer that each page belongs to
  std::map<uintptr_t, size_t> free_pages_;
  std::deque<Buffer> buffers_;
  std::vector<uint32_t> free_numbers_;
};

Memory& memory() {
  static Memory* const only = new Memory;  // never destroyed: libraries are unloaded in any order
  return *only;
}

bool poisoned(uintptr_t begin, uintptr_t end) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(begin);
  return std::all_of(bytes, bytes + (end - begin), [](unsigned char byte) { return byte == kPoison; });
}

}  // namespace

void* device_malloc(size_t bytes) { return memory().allocate(bytes); }
bool device_free(void* pointer) { return memory().free(pointer); }
void set_device_memory(size_t bytes) { memory().limit_ = bytes; }
size_t device_memory() { return memory().limit_; }
size_t device_memory_free() { return memory().limit_ - memory().used_; }
bool is_device_address(const void* address) { return memory().holds(address); }
Buffer* find_buffer(const void* address) { return memory().holds(address) ? memory().find(address) : nullptr; }

void reserve_stamps(Buffer& buffer) {
  static std::mutex lock;  // blocks run side by side
  std::lock_guard<std::mutex> guard(lock);
  if (buffer.stamps) return;
  void* stamps = mmap(nullptr, Memory::stamp_bytes(buffer), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stamps == MAP_FAILED) {
    fprintf(stderr, "hawq-tvm emulator: no memory for checks of a buffer of %zu bytes\n", buffer.end - buffer.begin);
    abort();
  }
  __atomic_store_n(&buffer.stamps, static_cast<uint32_t*>(stamps), __ATOMIC_RELEASE);
}

void clear_stamps() {
  for (Buffer& buffer : memory().buffers()) {
    if (buffer.stamped) madvise(buffer.stamps, Memory::stamp_bytes(buffer), MADV_DONTNEED);  // reads as zeros again
    buffer.stamped = false;
  }
}

const void* first_trampled_buffer() {
  for (const Buffer& buffer : memory().buffers()) {
    if (buffer.begin == 0) continue;
    const bool before = poisoned(buffer.first_page + kPage, buffer.begin);
    const bool after = poisoned(buffer.end, buffer.end_page - kPage);
    if (!before || !after) return reinterpret_cast<const void*>(buffer.begin);
  }
  return nullptr;
}

}  // namespace emulator
