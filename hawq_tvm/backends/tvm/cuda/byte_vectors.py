"""What TVM's code generator leaves out of its CUDA text: a vector of equal bytes.

It writes an int8x16 as ``make_int4`` of sixteen ``signed char`` and an int8x8 as ``make_int2`` of eight, which CUDA
does not have. The overloads here pack four bytes a word, the first in the lowest.
"""

from __future__ import annotations

import re

_USED = re.compile(r"\bmake_u?int[24]\(\((?:signed char|unsigned char|uchar)\)")


def with_byte_vectors(text: str) -> str:
    """The text, after the overloads where it uses them."""
    return _OVERLOADS + text if _USED.search(text) else text


def _overload(vector: str, word: str, byte: str, words: int) -> str:
    names = [f"b{index}" for index in range(4 * words)]
    parameters = ", ".join(f"{byte} {name}" for name in names)
    packed = ", ".join(f"({word})pack_bytes({', '.join(names[at : at + 4])})" for at in range(0, 4 * words, 4))
    head = f"static __device__ __forceinline__ {vector} make_{vector}({parameters})"
    return f"{head} {{\n  return make_{vector}({packed});\n}}\n"


_OVERLOADS = """\
static __device__ __forceinline__ unsigned pack_bytes(int b0, int b1, int b2, int b3) {
  return (b0 & 255u) | (b1 & 255u) << 8 | (b2 & 255u) << 16 | (b3 & 255u) << 24;
}
""" + "".join(
    _overload(f"{vector}{words}", word, byte, words)
    for vector, word, byte in (("int", "int", "signed char"), ("uint", "unsigned", "unsigned char"))
    for words in (2, 4)
)
