// SHA-256: FIPS 180-4.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

std::string sha256(const void* data, size_t bytes);  // hexadecimal

}  // namespace emulator
