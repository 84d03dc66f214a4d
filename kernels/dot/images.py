"""Where the pixels of stored images lie, and loops over them by whole vectors of channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.unit import Unit, missing
from hawq_tvm.kernels.generic.acceptance import refuse_filling_up
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.nhwc import Image, framed_rows
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import Request


def refuse_images(request: Request, unit: Unit, *, in_planes: bool = False) -> str | None:
    """Why a kernel does not take images as they lie; None where it does.

    Args:
        request: a request whose images have a storage in play; a result of one pixel may have none.
        unit: whose kernel it is.
        in_planes: whether it computes on planes of channels, too, and not channels last alone.
    """
    node = request.node
    for name, x in zip((*node.inputs, node.name), (*request.inputs, node.type), strict=True):
        if name not in request.alternatives:
            continue
        storage = request.alternatives[name]
        if storage.order != "NHWC" and not (in_planes and storage.block % unit.pair == 0):
            return f"computes on channels last, not on {storage}"
        if storage.offset != (unit.signed_offset if x.dtype.signed else 0):
            return (
                f"reads and writes unsigned bytes, signed values at +{unit.signed_offset}, not {x.dtype} in {storage}"
            )
    return None


def refuse_vectors(request: Request, unit: Unit) -> str | None:
    """Why a kernel without weights does not take whole vectors of channels as they lie; None where it does."""
    reason = missing(request.features, unit.needs) or refuse_images(request, unit, in_planes=True)
    if reason:
        return reason
    storage = request.alternatives[request.node.inputs[0]]
    if storage.channels(request.inputs[0]) < unit.lanes:
        return f"takes whole vectors of {unit.lanes} channels, not {storage}"
    rescale = request.node.op.rescale_or_none
    written = request.alternatives.get(request.node.name, Storage())
    return None if rescale is None else refuse_filling_up(written, request.node.type, rescale)


@dataclass(frozen=True)
class Plane:
    """Where the pixels of stored images lie; an index is one of bytes.

    `channels` are those of the array. Of a pixel `together` channels are neighbours: all of them channels last, a block
    of them in planes. The first `before` belong to other values.
    """

    height: int
    width: int
    channels: int
    top: int = 0
    left: int = 0
    together: int = 0
    before: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "together", self.together or self.channels)

    @classmethod
    def of(cls, type: TensorType, storage: Storage) -> Plane:
        top, left, bottom, right = storage.frame
        _, height, width = type.shape
        channels = storage.before + storage.channels(type) + storage.after
        together = storage.block if storage.order == "NCHW" else 0
        return cls(top + height + bottom, left + width + right, channels, top, left, together, storage.before)

    def index(self, n: Expr, row: Expr, column: Expr, channel: Expr) -> Expr:
        """Of a stored row and column; a column of -1 is the last of the row before."""
        channel = channel + self.before
        image = n * (self.channels // self.together) + channel // self.together
        return ((image * self.height + row) * self.width + column) * self.together + channel % self.together


@dataclass(frozen=True)
class Vectors:
    """How channels are cut into vectors; the last one moves left until it fits, and some channels come twice.

    Attributes:
        channels: at least as many as one vector has.
        lanes: of a vector.
    """

    channels: int
    lanes: int

    @classmethod
    def of(cls, channels: int, *lanes: int) -> Vectors:
        """The first of those that there are enough channels for."""
        return cls(channels, next(size for size in lanes if size <= channels))

    @property
    def count(self) -> int:
        return -(-self.channels // self.lanes)

    def first(self, number: Expr) -> Expr:
        """The first channel of a vector."""
        return tirx.min(number * self.lanes, self.channels - self.lanes)


def over_tiles(
    request: Request, y: Any, tile: int, vectors: Vectors, body: Callable[[Expr, Expr, Expr, Expr], None]
) -> None:
    """Loop over an image's rows, tiles of a row, and vectors of channels; a task is a stored row, frame included.

    Args:
        request: whose result is written.
        y: its buffer.
        tile: pixels, no more than a row has; the last tile of a row moves left until it fits.
        vectors: of the stored channels.
        body: emits a tile; gets its sample, row, first column and first channel.
    """
    node = request.node
    width = node.type.shape[2]

    def row(n: Expr, _block: Expr, h: Expr) -> None:
        with T.serial(-(-width // tile)) as number, T.serial(vectors.count) as vector:
            body(n, h, tirx.min(number * tile, width - tile), vectors.first(vector))

    elements = request.batch * max(prod(x.shape) for x in (*request.inputs, node.type))
    image = Image(y, node.type, request.alternatives[node.name])
    framed_rows(image, row, batch=request.batch, threads=elements >= MIN_ELEMENTS)
