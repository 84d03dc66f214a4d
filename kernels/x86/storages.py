"""Which instruction sets x86 CPUs have, as these kernels group them, and how values lie for them.

``vpdpbusd`` and what came before it multiply unsigned activations by signed weights. Signed activations are therefore
stored with 128 added, padding included, and the weights' sum times 128 leaves the bias: exact, and free.
"""

from __future__ import annotations

AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
"""What every CPU with AVX-512 for integers has."""

AVX512_VNNI = AVX512 | {"avx512vnni"}
"""What the 512-bit VNNI kernels are made of."""

NIBBLES = frozenset({"gfni"})
"""What splits bytes into signed halves in one instruction."""

MULTIPLY_ADD = frozenset({"avx512ifma"})
"""What multiplies 52-bit lanes and adds at once."""

UNSIGNED_OFFSET = 128
