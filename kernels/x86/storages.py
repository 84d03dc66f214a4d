"""Which instruction sets a CPU has, as these kernels group them, and how values lie for them.

VNNI's ``vpdpbusd`` multiplies unsigned activations by signed weights. Signed activations are therefore stored with 128
added, padding included, and the weights' sum times 128 leaves the bias: exact, and free.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VPDPBUSD.
"""

from __future__ import annotations

import numpy as np

from hawq_tvm.core.ir import Array
from hawq_tvm.core.ops import WeightedOperator

AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""What every CPU with AVX-512 for integers has."""

AVX512_VNNI = AVX512 | {"avx512vnni"}
"""What the 512-bit VNNI kernels are made of."""

NIBBLES = frozenset({"gfni"})
"""What splits bytes into signed halves in one instruction."""

MULTIPLY_ADD = frozenset({"avx512ifma"})
"""What multiplies 52-bit lanes and adds at once."""

UNSIGNED_OFFSET = 128


def signed_offset(features: frozenset[str]) -> int:
    """What is added to stored signed values on a CPU with these instruction sets.

    >>> signed_offset(AVX512_VNNI), signed_offset(frozenset({"avx2"}))
    (128, 0)
    """
    return UNSIGNED_OFFSET if features >= AVX512_VNNI else 0


def first_sums(op: WeightedOperator, offset: int) -> Array:
    """What accumulators begin with: the bias, less what an offset of the stored activations brings in.

    Returns:
        int32 [out], modulo 2^32, as accumulators count.
    """
    sums = op.weight.reshape(op.out_channels, -1).sum(axis=1, dtype=np.int64)
    return np.asarray(op.bias.astype(np.int64) - offset * sums).astype(np.int32)


def missing(features: frozenset[str], needed: frozenset[str]) -> str | None:
    """The sentence of a kernel whose instruction sets are not all there; None where they are.

    >>> missing(frozenset({"avx512f"}), frozenset({"avx512f", "avx512vnni"}))
    'needs avx512vnni, which the CPU compiled for does not have'
    """
    lacking = sorted(needed - features)
    return f"needs {' and '.join(lacking)}, which the CPU compiled for does not have" if lacking else None
