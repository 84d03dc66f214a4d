"""How values lie for AMX: planes of 64 channels whose pixels follow one another, zeros shared between rows.

A plane is [rows, pitch, 64]. To the right of each row lie as many zeros as any window reaches out to either side: they
pad the row to its right and the next one to its left. So the pixel that a window's tap reads lies at the same distance
from every output pixel, 16 neighbouring outputs read 16 neighbouring pixels, one KiB, and a convolution is one product
of matrices over all pixels of a plane (`hawq_tvm.kernels.x86.amx_operands`). The rows' ends come out as garbage, over
which the kernel writes zeros. Rows of zeros above and below hold what taps and whole blocks of 32 pixels reach past the
image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hawq_tvm.core.ir import Graph, Node, Shape, TensorType, Window
from hawq_tvm.core.ops import AvgPool2d, Conv2d, MaxPool2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.x86.storages import UNSIGNED_OFFSET

PLANE_CHANNELS = 64
BLOCK_PIXELS, BLOCK_CHANNELS = 32, 32
"""What is computed together: two tiles of 16 pixels by two of 16 channels."""


@dataclass(frozen=True)
class Plane:
    """Where pixels of a plane lie, counted along its rows.

    Attributes:
        height: of the image.
        width: of the image.
        pitch: from a row to the next.
        above: rows of zeros above the image.
        below: rows of zeros below it.
    """

    height: int
    width: int
    pitch: int
    above: int = 0
    below: int = 0

    @classmethod
    def of(cls, type: TensorType, storage: Storage) -> Plane:
        top, _, bottom, right = storage.frame
        _, height, width = type.shape
        return cls(height, width, width + right, top, bottom)

    @property
    def rows(self) -> int:
        return self.above + self.height + self.below

    @property
    def pixels(self) -> int:
        """Stored pixels, zeros included."""
        return self.rows * self.pitch

    @property
    def start(self) -> int:
        """The first pixel of the image."""
        return self.above * self.pitch

    @property
    def blocks(self) -> int:
        """Blocks of pixels from the image's first to its last."""
        return -(-((self.height - 1) * self.pitch + self.width) // BLOCK_PIXELS)


def columns_needed(window: Window, x: Shape, y: Shape) -> int:
    """How wide an output row must be, so that its window finds zeros, and no other row's pixels, at both sides.

    An input row is as wide as `stride` output rows. It holds the input and the zeros to its left, which are the
    previous row's right ones, and all that the last output's window reads.

    >>> columns_needed(Window((3, 3), pads=(1, 1, 1, 1)), (64, 56, 56), (64, 56, 56))
    57
    >>> columns_needed(Window((7, 7), (2, 2), (3, 3, 3, 3)), (3, 224, 224), (64, 112, 112))
    114
    """
    stride, left = window.strides[1], window.pads[1]
    held = min(x[2], _last_column(window, y) + 1) + left
    return max(-(-held // stride), _last_column(window, y) // stride + 1, y[2])


def _last_column(window: Window, y: Shape) -> int:
    """The input column that the last output's last tap reads; past the image where that is padding."""
    return (y[2] - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] - window.pads[1]


def blocked(graph: Graph) -> dict[str, Storage]:
    """The storage of each value that may lie so: every image of up to 8 bits and more than one pixel.

    Values that a convolution of stride 1 joins, and a residual with what it is added to, have one pitch.
    """
    types = {name: type for name, type in graph.types.items() if _may_lie_so(type)}
    pitches = _pitches(graph, types)
    planes = {name: _tall_enough(graph, name, type, pitches[name]) for name, type in types.items()}
    return {name: _storage(type, planes[name]) for name, type in types.items()}


def _may_lie_so(type: TensorType) -> bool:
    return type.dtype.bits <= 8 and len(type.shape) == 3 and type.shape[1:] != (1, 1)


def _storage(type: TensorType, plane: Plane) -> Storage:
    frame = (plane.above, 0, plane.below, plane.pitch - plane.width)
    offset = UNSIGNED_OFFSET if type.dtype.signed else 0
    return Storage(block=PLANE_CHANNELS, multiple=PLANE_CHANNELS, frame=frame, offset=offset)


def _window_of(node: Node) -> Window | None:
    """The window through which a node reads its first input, where it has one."""
    return node.op.window if isinstance(node.op, Conv2d | MaxPool2d | AvgPool2d) else None


def _pitches(graph: Graph, types: Mapping[str, TensorType]) -> dict[str, int]:
    """The least pitch of each value that suits all windows that read it, and all convolutions that write it."""
    groups = {name: {name} for name in types}
    pitches = {name: type.shape[2] for name, type in types.items()}
    for node in graph:
        window, (x, *residual) = _window_of(node), node.inputs
        if window is None or x not in types:
            continue
        pitches[x] = max(pitches[x], types[x].shape[2] + max(window.pads[1], window.pads[3]))
        if not isinstance(node.op, Conv2d) or node.name not in types:
            continue
        needed = columns_needed(window, types[x].shape, node.type.shape)
        pitches[node.name] = max(pitches[node.name], needed)
        joined = {node.name, *residual, *([x] if window.strides == (1, 1) else [])}
        merged = set[str]().union(*(groups[name] for name in joined if name in groups))
        groups.update(dict.fromkeys(merged, merged))
    return {name: max(pitches[member] for member in group) for name, group in groups.items()}


def _tall_enough(graph: Graph, name: str, type: TensorType, pitch: int) -> Plane:
    """A plane with rows for the last block that is written, and for all that windows read in place."""
    _, height, width = type.shape
    above, end = 0, Plane(height, width, pitch).blocks * BLOCK_PIXELS
    for node in graph:
        window = _window_of(node)
        if window is None or node.inputs[0] != name:
            continue
        (kh, kw), (dy, dx), (top, left, bottom, _) = window.kernel, window.dilations, window.pads
        above = max(above, _whole(top * pitch + left, pitch))
        end = max(end, (height + bottom) * pitch)
        if window.strides == (1, 1):
            last_tap = ((kh - 1) * dy - top) * pitch + (kw - 1) * dx - left
            _, rows, columns = node.type.shape
            end = max(end, Plane(rows, columns, pitch).blocks * BLOCK_PIXELS + last_tap)
    return Plane(height, width, pitch, above, _whole(end, pitch) - height)


def _whole(amount: int, unit: int) -> int:
    """How many units hold an amount."""
    return -(-amount // unit)
