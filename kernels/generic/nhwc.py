"""What the channels-last kernels share: images in memory, loops over framed rows, and when they are offered.

These kernels are explicit loops, not schedules: every index is written down, so that nothing is inferred from channel
counts that fill a block partly, and no access lies outside its buffer. They write all of their output in every call,
since planned memory is shared: the frame and the channels that fill up too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import Operator, Shape, TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.generic.acceptance import ANY_WEIGHT, PACKED_WEIGHT, decline, with_weights
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import BuiltKernel, Offer, Request


def channels_last(
    operator: type[Operator],
    cost: Callable[[Request], float],
    build: Callable[[Request], BuiltKernel],
    *,
    weight_bits: range = ANY_WEIGHT,
    refuse: Callable[[Request], str | None] = lambda request: None,
    writes_canonical: bool = False,
) -> Callable[[Request], Offer | str]:
    """The `offer` of a kernel that reads and writes the channels-last storages that are in play.

    Args:
        operator: what it computes.
        cost: estimated microseconds.
        build: makes the function.
        weight_bits: of the weights that it takes.
        refuse: a further reason to decline.
        writes_canonical: for results of one pixel, which have no other storage.
    """

    def offer(request: Request) -> Offer | str:
        storages = decline(request, operator, weight_bits) or request.channels_last(writes_canonical=writes_canonical)
        if isinstance(storages, str):
            return storages
        reason = refuse(request)
        if reason is not None:
            return reason
        plain = Offer(*storages, cost(request), lambda: build(request))
        return with_weights(plain, request, packed=weight_bits == PACKED_WEIGHT)

    return offer


@dataclass(frozen=True, eq=False)
class Image:
    """A value in a function's buffer, channels last or in planes of a block of channels."""

    buffer: Any
    type: TensorType
    storage: Storage

    def __getitem__(self, index: tuple[Expr, Expr, Expr, Expr]) -> Expr:
        """The value at (sample, channel, row, column); rows and columns may lie in the frame, as -1 does."""
        n, c, h, w = index
        top, left, _, _ = self.storage.frame
        stored = self.buffer[self._place(n, c, h + top, w + left)]
        if not self.storage.offset:
            return stored
        return stored.astype("int32") - tirx.const(self.storage.offset, "int32")

    def store(self, value: Expr, n: Expr, c: Expr, h: Expr, w: Expr) -> None:
        """Write a value that lies in the type's range, of any integer dtype."""
        top, left, _, _ = self.storage.frame
        if self.storage.offset:
            value = value.astype("int32") + tirx.const(self.storage.offset, "int32")
        T.buffer_store(self.buffer, value.astype(self.buffer.dtype), list(self._place(n, c, h + top, w + left)))

    def _place(self, n: Expr, c: Expr, row: Expr, column: Expr) -> tuple[Expr, ...]:
        """The indices of a stored element; a column of -1 is the last of the row before."""
        block, c = self.storage.block, c + self.storage.before
        return (n, row, column, c) if block == 1 else (n, c // block, row, column, c % block)

    @property
    def channels(self) -> int:
        """The stored channels, those that fill up counted."""
        return self.storage.channels(self.type)

    @property
    def filled_up(self) -> int:
        """How many stored channels are none of the value's."""
        return self.channels - self.type.shape[0]

    def zero(self, n: Expr, row: Expr, columns: tuple[int, int], channels: tuple[Expr, int]) -> None:
        """Zeros in stored columns and channels (start, count) of a stored row."""
        if columns[1] and channels[1]:
            with T.serial(columns[1]) as column, T.serial(channels[1]) as channel:
                zero = tirx.const(self.storage.offset, self.buffer.dtype)
                place = self._place(n, channels[0] + channel, row, columns[0] + column)
                T.buffer_store(self.buffer, zero, list(place))


def framed_rows(
    image: Image, row: Callable[[Expr, Expr, Expr], None], *, batch: int, blocks: int = 1, threads: bool
) -> None:
    """Loop over samples, channel blocks and stored rows of an output; writes the frame itself.

    Args:
        image: the output.
        row: emits the loops that write a block of channels of an inner row; gets the sample, the block and the row.
        batch: samples.
        blocks: what the stored channels are cut into; a task writes one block of one row.
        threads: whether tasks are spread over threads.
    """
    top, left, bottom, right = image.storage.frame
    _, height, width = image.type.shape
    rows, block = top + height + bottom, image.channels // blocks
    with (T.parallel if threads else T.serial)(batch * blocks * rows) as task:
        n, b, r = task // (blocks * rows), task // rows % blocks, task % rows
        channels = (b * block, block)
        if not any((top, left, bottom, right)):
            row(n, b, r)
            return
        with T.If(tirx.all(r >= top, r < top + height)):
            with T.Then():
                image.zero(n, r, (0, left), channels)
                image.zero(n, r, (left + width, right), channels)
                row(n, b, r - top)
            with T.Else():
                image.zero(n, r, (0, left + width + right), channels)


def local(shape: Shape, dtype: str) -> Any:
    """Accumulators of one thread, which LLVM keeps in registers.

    To be called inside the loop over tasks: TVM leaves the buffer where it stands, and one that stands outside would be
    shared by all threads.
    """
    return T.alloc_buffer(shape, dtype, scope="local")


def over_channels(image: Image, start: int, count: int, emit: Callable[[Expr], None]) -> None:
    """Loop over `count` channels, of which the first is stored as `start`, so that inner loops are vectors.

    Args:
        image: whose blocks the loop follows, where it has any and they begin together.
        start: the first one's channel in the image.
        count: how many.
        emit: emits the work on one, by its number from 0.
    """
    block = image.storage.block
    whole = count // block if block > 1 and start % block == 0 else 0
    if whole:
        with T.serial(whole) as number, T.serial(block) as lane:
            emit(number * block + lane)
    if count > whole * block:
        with T.serial(count - whole * block) as lane:
            emit(whole * block + lane)


def lanes_of(channels: int, widest: int) -> int:
    """The largest power of two, up to `widest`, that divides a number of channels."""
    lanes = 1
    while lanes < widest and channels % (2 * lanes) == 0:
        lanes *= 2
    return lanes
