// nvcuda::wmma on integers, as TVM's text uses it: "CUDA C++ Programming Guide", "Warp Matrix Functions".
#pragma once

#include "wmma.h"

namespace nvcuda {
namespace wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };
namespace experimental {
namespace precision {
struct s4 {};
struct u4 {};
}  // namespace precision
}  // namespace experimental

namespace detail {

template <class T>
struct Element;  // bits and sign; other element types are no members of this table
template <>
struct Element<signed char> {
  static constexpr unsigned bits = 8;
  static constexpr bool is_signed = true;
};
template <>
struct Element<char> : Element<signed char> {};
template <>
struct Element<unsigned char> {
  static constexpr unsigned bits = 8;
  static constexpr bool is_signed = false;
};
template <>
struct Element<experimental::precision::s4> {
  static constexpr unsigned bits = 4;
  static constexpr bool is_signed = true;
};
template <>
struct Element<experimental::precision::u4> {
  static constexpr unsigned bits = 4;
  static constexpr bool is_signed = false;
};

template <unsigned M, unsigned N, unsigned K>
constexpr bool is_shape(unsigned bits) {
  // "Element Types and Matrix Sizes": the shapes of 8-bit and of sub-byte integers
  return bits == 4 ? M == 8 && N == 8 && K == 32
                   : K == 16 && ((M == 16 && N == 16) || (M == 32 && N == 8) || (M == 8 && N == 32));
}

template <class L>
struct IsColumns {
  static constexpr bool value = false;
};
template <>
struct IsColumns<col_major> {
  static constexpr bool value = true;
};

}  // namespace detail

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment;

template <int M, int N, int K, class T, class Layout>
struct fragment<matrix_a, M, N, K, T, Layout> {
  static_assert(detail::is_shape<M, N, K>(detail::Element<T>::bits), "no shape of WMMA");
  static constexpr emulator::WmmaForm form{M, K, detail::Element<T>::bits, detail::Element<T>::is_signed,
                                           detail::IsColumns<Layout>::value};
  int16_t matrix[M * K];
};

template <int M, int N, int K, class T, class Layout>
struct fragment<matrix_b, M, N, K, T, Layout> {
  static_assert(detail::is_shape<M, N, K>(detail::Element<T>::bits), "no shape of WMMA");
  static constexpr emulator::WmmaForm form{N, K, detail::Element<T>::bits, detail::Element<T>::is_signed,
                                           !detail::IsColumns<Layout>::value};
  int16_t matrix[N * K];
};

template <int M, int N, int K>
struct fragment<accumulator, M, N, K, int, void> {
  int32_t matrix[M * N];
};

template <class Use, int M, int N, int K, class T, class Layout>
static inline void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& to, const void* memory, unsigned leading) {
  emulator::wmma_load(to.form, to.matrix, memory, leading);
}

template <int M, int N, int K>
static inline void load_matrix_sync(fragment<accumulator, M, N, K, int>& to, const int* memory, unsigned leading,
                                    layout_t layout) {
  emulator::wmma_load({M, N, 32, true, layout == mem_col_major}, to.matrix, memory, leading);
}

template <int M, int N, int K>
static inline void store_matrix_sync(int* memory, const fragment<accumulator, M, N, K, int>& from, unsigned leading,
                                     layout_t layout) {
  emulator::wmma_store({M, N, 32, true, layout == mem_col_major}, from.matrix, memory, leading);
}

template <int M, int N, int K, class V>
static inline void fill_fragment(fragment<accumulator, M, N, K, int>& of, V value) {
  emulator::wmma_fill(of.matrix, M * N, static_cast<int32_t>(value));
}

template <int M, int N, int K, class TA, class LA, class TB, class LB>
static inline void mma_sync(fragment<accumulator, M, N, K, int>& d, const fragment<matrix_a, M, N, K, TA, LA>& a,
                            const fragment<matrix_b, M, N, K, TB, LB>& b,
                            const fragment<accumulator, M, N, K, int>& c) {
  static_assert(detail::Element<TA>::bits == detail::Element<TB>::bits, "WMMA multiplies equal types");
  emulator::wmma_multiply(M, N, K, d.matrix, a.matrix, b.matrix, c.matrix);
}

}  // namespace wmma
}  // namespace nvcuda
