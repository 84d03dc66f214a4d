#include <algorithm>

#include "machine.h"
#include "shadow.h"

namespace emulator {

namespace {

// Blocks run side by side on the cores, so the update is atomic here too.
template <class T, class Update>
T update(T* address, Update next) {
  check_atomic(address, sizeof(T));
  T before;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  for (;;) {
    T after = next(before);
    if (__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return before;
  }
}

template <class T>
T sum(T a, T b) {
  return a + b;
}
template <>
int sum(int a, int b) {  // wraps around
  return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
}

}  // namespace

template <class T>
T atomic_add(T* address, T value) {
  return update(address, [value](T before) { return sum(before, value); });
}
template <class T>
T atomic_min(T* address, T value) {
  return update(address, [value](T before) { return std::min(before, value); });
}
template <class T>
T atomic_max(T* address, T value) {
  return update(address, [value](T before) { return std::max(before, value); });
}
template <class T>
T atomic_compare_and_swap(T* address, T expected, T value) {
  return update(address, [=](T before) { return before == expected ? value : before; });
}

#define EMULATOR_ATOMICS(T)                       \
  template T atomic_add(T*, T);                   \
  template T atomic_min(T*, T);                   \
  template T atomic_max(T*, T);                   \
  template T atomic_compare_and_swap(T*, T, T);

EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long long)
EMULATOR_ATOMICS(float)

}  // namespace emulator
