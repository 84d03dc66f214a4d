#include "image.h"

#include <elf.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace emulator {

namespace {

// NVIDIA does not document the fatbin. Its header and entries are those that `fatbinary` writes; see
// hawq_tvm/backends/tvm/cuda/fatbin.py.
constexpr uint32_t kFatbinMagic = 0xBA55ED50;
constexpr uint16_t kPtx = 1;

struct FatbinHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t body_bytes;
};

struct FatbinEntry {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t code_bytes;
  uint32_t compressed_bytes, options;
  uint16_t minor, major;
  uint32_t architecture;
};

struct Code {
  bool ptx;
  int architecture;  // 75 for sm_75
};

template <class T>
T read(const char* from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

bool is_fatbin(const char* image) { return read<uint32_t>(image) == kFatbinMagic; }
bool is_elf(const char* image) { return memcmp(image, ELFMAG, SELFMAG) == 0; }

const char* ptx_target(const char* image) {
  const char* target = strstr(image, ".target sm_");
  return target && strstr(image, ".version ") ? target + strlen(".target sm_") : nullptr;
}

std::vector<Code> codes_of_fatbin(const char* image) {
  const auto header = read<FatbinHeader>(image);
  std::vector<Code> codes;
  for (uint64_t at = 0; at + sizeof(FatbinEntry) <= header.body_bytes;) {
    const auto entry = read<FatbinEntry>(image + header.header_bytes + at);
    if (entry.header_bytes == 0) break;
    codes.push_back({entry.kind == kPtx, static_cast<int>(entry.architecture)});
    at += entry.header_bytes + entry.code_bytes;
  }
  return codes;
}

// e_flags of a cubin: the architecture is in bits 8 to 15 from ABI version 8 of CUDA 13 on, in bits 0 to 7 before.
int architecture_of_cubin(const char* image) {
  const auto header = read<Elf64_Ehdr>(image);
  return header.e_ident[EI_ABIVERSION] >= 8 ? header.e_flags >> 8 & 255 : header.e_flags & 255;
}

std::vector<Code> codes(const char* image) {
  if (is_fatbin(image)) return codes_of_fatbin(image);
  if (is_elf(image)) return {{false, architecture_of_cubin(image)}};
  if (const char* target = ptx_target(image)) return {{true, atoi(target)}};
  return {};
}

}  // namespace

size_t image_bytes(const void* data) {
  const char* image = static_cast<const char*>(data);
  if (is_fatbin(image)) {
    const auto header = read<FatbinHeader>(image);
    return header.header_bytes + header.body_bytes;
  }
  if (is_elf(image)) {
    const auto header = read<Elf64_Ehdr>(image);
    size_t end = std::max(header.e_shoff + size_t(header.e_shnum) * header.e_shentsize,
                          header.e_phoff + size_t(header.e_phnum) * header.e_phentsize);
    for (unsigned i = 0; i < header.e_shnum; i++) {
      const auto section = read<Elf64_Shdr>(image + header.e_shoff + size_t(i) * header.e_shentsize);
      if (section.sh_type != SHT_NOBITS) end = std::max<size_t>(end, section.sh_offset + section.sh_size);
    }
    return end;
  }
  return ptx_target(image) ? strlen(image) : 0;
}

bool image_runs_on(const void* image, int major, int minor) {
  for (const Code& code : codes(static_cast<const char*>(image))) {
    const int of_major = code.architecture / 10, of_minor = code.architecture % 10;
    if (code.ptx ? code.architecture <= 10 * major + minor : of_major == major && of_minor <= minor) return true;
  }
  return false;
}

std::string image_contents(const void* image) {
  std::string list;
  for (const Code& code : codes(static_cast<const char*>(image)))
    list += (list.empty() ? "" : ", ") + std::string(code.ptx ? "compute_" : "sm_") + std::to_string(code.architecture);
  return list.empty() ? "nothing" : list;
}

}  // namespace emulator
