"""How a value lies in memory: a property of the edge between two nodes, not of either.

Users, the interpreter and `verify` see a value's integers as canonical [N, C, H, W]. Between kernels they may lie
otherwise: channels last or in blocks, channels filled up to a vector, a frame of zeros that the producer writes for its
consumers' padding, two 4-bit values a byte, signed values shifted to unsigned ones. `Storage` says how, and `pack` and
`unpack` are the reference that kernels are held to.

>>> image = TensorType(IntType(8, signed=False), (3, 4, 5), 1.0)
>>> framed = Storage("NHWC", multiple=4, frame=(1, 1, 1, 1))
>>> framed.shape(image, 1), framed.size_bytes(image, 1), str(framed)
((1, 6, 7, 4), 168, 'NHWC/4 frame 1,1,1,1')
>>> x = np.arange(60, dtype=np.uint8).reshape(1, 3, 4, 5)
>>> bool((unpack(pack(x, image, framed), image, framed) == x).all())
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np

from hawq_tvm.core.errors import GraphError
from hawq_tvm.core.ir import Array, IntType, Shape, TensorType

ORDERS = ("NCHW", "NHWC")
STORED_BITS = (4, 8, 32)


@dataclass(frozen=True)
class Storage:
    """How a value's integers lie in memory, whatever its shape.

    A stored element is ``value + offset``. Everything that is no value (channels that fill up, the frame, the odd half
    of a last byte) stores the value zero, that is ``offset``: a convolution that reads it adds nothing.

    Attributes:
        order: ``NCHW`` or ``NHWC``.
        block: channels of a block, which lie together as a last axis: [N, C / block, H, W, block]; 1 for none.
        multiple: the stored channels are filled up to a multiple of it.
        frame: rows and columns of zeros around each image: (top, left, bottom, right).
        bits: a stored element's: 8, 32, or 4 with two neighbours of the last axis in a byte, the first in its low half.
        offset: added to each value.
        before: stored channels of other values in the same array, which lie before this one's in each pixel.
        after: those behind.

    Raises:
        GraphError: fields that contradict one another.
    """

    order: str = "NCHW"
    block: int = 1
    multiple: int = 1
    frame: tuple[int, int, int, int] = (0, 0, 0, 0)
    bits: int = 8
    offset: int = 0
    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", tuple(map(int, self.frame)))
        if self.order not in ORDERS or self.bits not in STORED_BITS:
            raise GraphError(f"a storage has an order of {ORDERS} and bits of {STORED_BITS}, got {self}")
        if self.block < 1 or self.multiple < 1 or self.multiple % self.block:
            raise GraphError(f"a storage fills channels up to whole blocks, got block {self.block} in {self.multiple}")
        if self.block > 1 and self.order == "NHWC":
            raise GraphError(f"channels last lie together as they are; got blocks of {self.block}")
        if len(self.frame) != 4 or min(self.frame) < 0:
            raise GraphError(f"a frame is four sizes of at least 0: top, left, bottom, right; got {self.frame}")
        if min(self.before, self.after) < 0 or (self.is_part and (self.order, self.bits) != ("NHWC", 8)):
            raise GraphError(f"only bytes that lie channels last are a part of an array, got {self}")
        if self.offset and self.bits == 32:
            raise GraphError(f"32-bit values are stored as they are, got an offset of {self.offset}")

    @classmethod
    def canonical(cls, type: TensorType) -> Storage:
        """As users, the interpreter and `verify` have it: NCHW, in the carrier dtype."""
        return cls(bits=32 if type.dtype.bits == 32 else 8)

    @property
    def is_part(self) -> bool:
        """Whether other values lie in the same array."""
        return self.before + self.after > 0

    def part(self, type: TensorType, start: int, of: TensorType, multiple: int) -> Storage:
        """The storage of some channels of a value that is stored so.

        Args:
            type: the value's.
            start: the first of its channels that they are.
            of: their own type.
            multiple: what their channels are filled up to.

        >>> whole = TensorType(IntType(8, signed=False), (48, 4, 5), 1.0)
        >>> str(Storage("NHWC", multiple=16).part(whole, 16, TensorType(whole.dtype, (16, 4, 5), 1.0), 16))
        'NHWC/16 behind 16 channels before 16 channels'
        """
        behind = self.channels(type) - start + self.after
        filled = -(-of.shape[0] // multiple) * multiple
        return replace(self, multiple=multiple, before=self.before + start, after=behind - filled)

    def check(self, type: TensorType) -> None:
        """Raise `GraphError` unless values of `type` can be stored so."""
        if len(type.shape) != 3 and (self.order, self.block, self.frame) != ("NCHW", 1, (0, 0, 0, 0)):
            raise GraphError(f"only images [C, H, W] have an order, blocks or a frame, got {type} in {self}")
        lo, hi = self._range(type.dtype)
        if type.dtype.lo + self.offset < lo or type.dtype.hi + self.offset > hi:
            raise GraphError(f"{type.dtype} in {self} would store {type.dtype.lo + self.offset} to "
                             f"{type.dtype.hi + self.offset}, which leave {lo}..{hi}")  # fmt: skip

    def _range(self, dtype: IntType) -> tuple[int, int]:
        """What an element can hold: signed where values are, and are not shifted."""
        signed = self.bits == 32 or (dtype.signed and not self.offset)
        return (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1) if signed else (0, (1 << self.bits) - 1)

    def dtype(self, type: TensorType) -> str:
        """The numpy dtype of the stored array: ``int8``, ``uint8`` or ``int32``; pairs of 4 bits are ``uint8``."""
        if self.bits == 32:
            return "int32"
        return "int8" if self.bits == 8 and self._range(type.dtype)[0] < 0 else "uint8"

    def channels(self, type: TensorType) -> int:
        """The stored channels, those that fill up counted."""
        return -(-type.shape[0] // self.multiple) * self.multiple

    def shape(self, type: TensorType, batch: int) -> Shape:
        """The shape of the stored array, `batch` samples first."""
        *outer, last = self._elements(type, batch)
        return (*outer, -(-last // 2) if self.bits == 4 else last)

    def size_bytes(self, type: TensorType, batch: int) -> int:
        """Memory that the stored array takes; of an array with other values in it, this one's share."""
        whole = prod(self.shape(type, batch)) * np.dtype(self.dtype(type)).itemsize
        return whole // self._all_channels(type) * self.channels(type) if self.is_part else whole

    def own(self, stored: Array, type: TensorType) -> Array:
        """What of a stored array is this value's: a view; all of it where no other value lies there."""
        return stored[..., self.before : self.before + self.channels(type)] if self.is_part else stored

    def _all_channels(self, type: TensorType) -> int:
        """The stored channels of the array."""
        return self.before + self.channels(type) + self.after

    def _elements(self, type: TensorType, batch: int) -> Shape:
        """The shape of the stored array, 4-bit elements counted one by one."""
        channels = self._all_channels(type)
        if len(type.shape) != 3:
            return (batch, channels, *type.shape[1:])
        top, left, bottom, right = self.frame
        height, width = type.shape[1] + top + bottom, type.shape[2] + left + right
        if self.order == "NHWC":
            return (batch, height, width, channels)
        if self.block > 1:
            return (batch, channels // self.block, height, width, self.block)
        return (batch, channels, height, width)

    def __str__(self) -> str:
        text = self.order + (f"{self.block}c" if self.block > 1 else "")
        text += f"/{self.multiple}" if self.multiple > 1 else ""
        text += f" frame {','.join(map(str, self.frame))}" if any(self.frame) else ""
        text += f" {self.bits} bits" if self.bits != 8 else ""
        text += f" behind {self.before} channels" if self.before else ""
        text += f" before {self.after} channels" if self.after else ""
        return text + (f" {self.offset:+}" if self.offset else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Storage:
        """The inverse of `to_json`; fields that are left out have their defaults."""
        return cls(**{**data, "frame": tuple(data.get("frame", (0, 0, 0, 0)))})


def _inside(type: TensorType, storage: Storage) -> tuple[slice, ...]:
    """Where the values lie in an array of all stored channels, rows and columns, [N, C, H, W]."""
    channels = slice(storage.before, storage.before + type.shape[0])
    if len(type.shape) != 3:
        return (slice(None), channels)
    top, left, _, _ = storage.frame
    return (slice(None), channels, slice(top, top + type.shape[1]), slice(left, left + type.shape[2]))


def pack(x: Array, type: TensorType, storage: Storage) -> Array:
    """Store a batch: the reference for kernels that write `storage`; of other values in the array zeros.

    Args:
        x: integers [N, ...] of `type`.
        type: the value's.
        storage: how to store it.

    Returns:
        `storage.dtype` of `storage.shape`.

    Raises:
        GraphError: values of that type cannot be stored so.
    """
    storage.check(type)
    channels = storage._all_channels(type)
    rest = type.shape[1:]
    if len(type.shape) == 3:
        top, left, bottom, right = storage.frame
        rest = (rest[0] + top + bottom, rest[1] + left + right)
    elements = np.full((len(x), channels, *rest), storage.offset, np.int64)
    elements[_inside(type, storage)] = x.astype(np.int64) + storage.offset
    if storage.order == "NHWC":
        elements = elements.transpose(0, 2, 3, 1)
    elif storage.block > 1:
        elements = np.moveaxis(elements.reshape(len(x), -1, storage.block, *rest), 2, -1)
    if storage.bits == 4:
        if elements.shape[-1] % 2:
            filled = np.full((*elements.shape[:-1], 1), storage.offset)
            elements = np.concatenate([elements, filled], axis=-1)
        elements = (elements[..., ::2] & 15) | ((elements[..., 1::2] & 15) << 4)
    return np.ascontiguousarray(elements, storage.dtype(type))


def unpack(stored: Array, type: TensorType, storage: Storage) -> Array:
    """The inverse of `pack`; what lies in the padding is not looked at.

    Args:
        stored: `storage.dtype` of `storage.shape`.
        type: the value's.
        storage: how it is stored.

    Returns:
        [N, ...] in the carrier dtype of `type`.

    Raises:
        GraphError: values of that type cannot be stored so, or an array of another shape or dtype.
    """
    storage.check(type)
    batch = len(stored)
    expected, dtype = storage.shape(type, batch), storage.dtype(type)
    if stored.shape != expected or stored.dtype != np.dtype(dtype):
        raise GraphError(
            f"{type} in {storage} is {dtype} {expected}, got {stored.dtype} {stored.shape}; was it packed otherwise?"
        )
    elements = stored.astype(np.int64)
    if storage.bits == 4:
        halves = np.stack([elements & 15, elements >> 4], axis=-1)
        if storage._range(type.dtype)[0] < 0:
            halves = (halves ^ 8) - 8
        last = storage._elements(type, batch)[-1]
        elements = halves.reshape(*stored.shape[:-1], -1)[..., :last]
    if storage.order == "NHWC":
        elements = elements.transpose(0, 3, 1, 2)
    elif storage.block > 1:
        elements = np.moveaxis(elements, -1, 2)
        elements = elements.reshape(batch, -1, *elements.shape[3:])
    values = elements[_inside(type, storage)] - storage.offset
    return np.ascontiguousarray(values, type.dtype.carrier)
