// WMMA fragments are opaque ("CUDA C++ Programming Guide", "Warp Matrix Functions": the mapping of matrix elements into
// fragment storage is unspecified), so the first thread of a warp holds the whole matrix and does the arithmetic.
#pragma once

#include "machine.h"

namespace emulator {

struct WmmaForm {
  unsigned rows, columns;  // of the matrix; B is held transposed, a column of it a row here
  unsigned bits;           // of an element in memory: 4, 8 or 32
  bool is_signed;
  bool across;  // whether a row of the matrix held here runs across memory's rows
};

// `matrix`: int16_t for A and B, int32_t for accumulators, rows * columns. `leading`: elements between memory's rows.
void wmma_load(WmmaForm form, void* matrix, const void* memory, unsigned leading);
void wmma_store(WmmaForm form, const int32_t* matrix, void* memory, unsigned leading);
void wmma_multiply(unsigned m, unsigned n, unsigned k, int32_t* d, const int16_t* a, const int16_t* b,
                   const int32_t* c);
void wmma_fill(int32_t* matrix, unsigned elements, int32_t value);

}  // namespace emulator
