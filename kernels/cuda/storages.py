"""How values lie in a GPU's memory: canonical, or channels last with whole words of channels.

A thread loads 128 bits at once, from addresses that are multiples of 16 bytes. So the channels of a pixel, which lie
together, are filled up to 16 bytes: 16 values of up to 8 bits, or 32 of up to 4, which lie two a byte. Images of few
channels (pixels) are filled up to one 32-bit word instead. There is no frame: a load outside the image is switched off
by a predicate and leaves zeros, which costs nothing.
"""

from __future__ import annotations

from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.interface import Request

WORD_BITS = 32
CHUNK_BITS = 128
"""A register, and the most that one instruction loads or stores."""
CHUNK_BYTES = CHUNK_BITS // 8
CHUNK_WORDS = CHUNK_BITS // WORD_BITS


Stored = tuple[TensorType, Storage]
"""A value's type, and how it is stored."""


def stored_values(request: Request, reads: tuple[Storage, ...], writes: Storage) -> tuple[list[Stored], Stored]:
    """A node's inputs, and its result."""
    return list(zip(request.inputs, reads, strict=True)), (request.node.type, writes)


def stored_bits(type: TensorType) -> int:
    """Bits of a stored element: values of up to 4 bits lie two a byte."""
    return 4 if type.dtype.bits <= 4 else 8


def channels_last(type: TensorType) -> Storage | None:
    """The channels-last storage that GPU kernels read and write for a value; None where it is canonical in any case.

    >>> from hawq_tvm.core.ir import IntType
    >>> image = (40, 7, 7)
    >>> [str(channels_last(TensorType(IntType.parse(t), image, 1.0))) for t in ("u8", "s4")]
    ['NHWC/16', 'NHWC/32 4 bits']
    >>> str(channels_last(TensorType(IntType.parse("u8"), (3, 224, 224), 1.0)))
    'NHWC/4'
    """
    if type.dtype.bits > 8 or len(type.shape) != 3:
        return None
    bits = stored_bits(type)
    word, chunk = WORD_BITS // bits, CHUNK_BITS // bits
    return Storage("NHWC", multiple=word if type.shape[0] <= word else chunk, bits=bits)
