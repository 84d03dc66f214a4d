"""How a convolution by dot products is cut: what the work is, what is free in it, and what caches make of that."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels.dot.panels import Panels
from hawq_tvm.kernels.dot.rests import Rests
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.generic.blocking import best_tile
from hawq_tvm.kernels.interface import Request

MIN_MACS = 3_000_000
"""Multiply-accumulates from which threads pay: 6 us of one core, where workers are awake within a network."""

L1_BYTES = 32 * 1024
"""What a layer's weights may take to stay in the first cache beside activations: then blocks are the inner loop."""

L2_BYTES = 400 * 1024
"""What the activations of a group of rows may take to stay in the second cache while panels pass."""

MAX_WEIGHTS_OF_HALVES = 2
"""Bytes of weights beside one of activations up to which rows are cut in halves: so each of two threads reads what it
wrote itself, and both read all weights. With more of them, and where all pixels are one row and little is computed with
each weight, each thread takes half of the channels of all rows."""


@dataclass(frozen=True)
class Shape:
    """What the work is.

    Attributes:
        flat: whether all pixels are one row.
        output_rows: of all samples.
        width: output pixels of a row.
        panels: the weights.
        depth: input channels that a block reads.
        run: bytes that lie together: of all taps of a kernel's row where those do, else of one tap.
        activation_bytes: of input and result.
        rests: what runs have beyond whole steps, where that is gathered; else the last step of a run moves left.
    """

    flat: bool
    output_rows: int
    width: int
    panels: Panels
    depth: int
    run: int
    activation_bytes: int
    rests: Rests | None = None

    @property
    def run_steps(self) -> int:
        """Of a run, apart from what is gathered."""
        return self.run // self.panels.unit.step if self.rests else -(-self.run // self.panels.unit.step)

    def rows(self, tile: int) -> int:
        """What tasks are counted by: rows, or tiles where all pixels are one row."""
        return -(-self.width // tile) if self.flat else self.output_rows

    @classmethod
    def of(cls, request: Request, unit: Unit, *, packed: bool) -> Shape:
        op, type = request.node.op, request.node.type
        assert isinstance(op, Conv2d)
        source, *_, target = storages = [
            request.alternatives[name] for name in (*request.node.inputs, request.node.name)
        ]
        pointwise = op.window.kernel == op.window.strides == (1, 1) and not any(op.window.pads)
        is_flat = pointwise and not any(any(storage.frame) or storage.block > 1 for storage in storages)
        _, height, width = type.shape
        depth = depth_of(op, unit, source.channels(request.inputs[0]))
        run = run_of(op, unit, source.channels(request.inputs[0]))
        count = prod(op.window.kernel) * depth // run
        panels = Panels(unit, target.channels(type), steps_of(count, run, width, unit), packed)
        activations = source.size_bytes(request.inputs[0], request.batch) + target.size_bytes(type, request.batch)
        width = request.batch * height * width if is_flat else width
        return cls(
            is_flat,
            request.batch * height,
            width,
            panels,
            depth,
            run,
            activations,
            Rests.of(count, run, width, unit),
        )


@dataclass(frozen=True)
class Tiling:
    """What is free in how the work is cut; the integers are the same whatever it is.

    Attributes:
        tile: pixels of a row computed together at most; where all pixels are one row the last tile moves left until it
            fits.
        groups: groups of rows; all blocks pass over one before the next begins. 0: all blocks pass over each row.
        ahead: how many panels ahead of the one that is read memory is fetched; 0 for nothing.
        threads: whether tasks are shared among threads.
    """

    tile: int
    groups: int
    ahead: int
    threads: bool

    @classmethod
    def choose(cls, request: Request, shape: Shape) -> Tiling:
        """By what the caches hold."""
        op, unit = request.node.op, shape.panels.unit
        assert isinstance(op, Conv2d)
        spare = 0 if shape.flat or op.rescale.residual is not None else unit.spare_tile
        tile = tile_of(shape.width, unit, spare)
        halved = not shape.flat and shape.panels.size_bytes <= MAX_WEIGHTS_OF_HALVES * shape.activation_bytes
        groups = max(1 + halved, -(-shape.activation_bytes // L2_BYTES))
        groups = min(shape.rows(tile), groups) if shape.flat else even_groups(shape.output_rows, groups, 1 + halved)
        if shape.panels.size_bytes <= L1_BYTES:
            groups = 0
        return cls(tile, groups, 1, op.macs(request.node.type) * request.batch >= MIN_MACS)

    @classmethod
    def candidates(cls, request: Request, shape: Shape) -> tuple[Tiling, ...]:
        """All that are worth timing, the chosen one first.

        Tiles of half as many pixels as usual load weights too often, of half as many again leave no registers.
        """
        own, usual = cls.choose(request, shape), shape.panels.unit.max_tile
        most = min(3 * usual // 2, shape.width)
        tiles, groups = range(most, min(usual // 2, most) - 1, -1), sorted({0, 1, 2, 4, 8, own.groups})
        choices = (cls(*choice) for choice in product(tiles, groups, (0, 1, 2), (True, False)))
        return tuple(dict.fromkeys((own, *(it for it in choices if it.groups <= shape.rows(it.tile)))))


@dataclass(frozen=True)
class Cut:
    """How the work is cut.

    Attributes:
        shape: what it is.
        tiling: what was free.
    """

    shape: Shape
    tiling: Tiling

    @property
    def panels(self) -> Panels:
        return self.shape.panels

    @property
    def tile(self) -> int:
        return self.tiling.tile

    @property
    def rows(self) -> int:
        return self.shape.rows(self.tile)

    @property
    def tiles(self) -> int:
        """Of a row."""
        return 1 if self.shape.flat else -(-self.shape.width // self.tile)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The tiles of a row: how many of how many pixels, which differ by one at most."""
        widest = -(-self.shape.width // self.tiles)
        wide = self.shape.width - self.tiles * (widest - 1)
        return tuple(run for run in ((wide, widest), (self.tiles - wide, widest - 1)) if run[0])

    @property
    def group_rows(self) -> int:
        return -(-self.rows // max(1, self.tiling.groups))

    @classmethod
    def of(cls, request: Request, unit: Unit, *, packed: bool, tiling: Tiling | None = None) -> Cut:
        shape = Shape.of(request, unit, packed=packed)
        return cls(shape, tiling or Tiling.choose(request, shape))


def even_groups(rows: int, wanted: int, multiple: int) -> int:
    """About as many groups of rows as are wanted, all of one size, and a multiple of that number where one is."""
    counts = [count for count in range(multiple, rows + 1, multiple) if rows % count == 0]
    return min(counts, key=lambda count: (abs(count - wanted), -count), default=min(rows, wanted))


def steps_of(runs: int, size: int, width: int, unit: Unit) -> int:
    """The steps that so many runs of so many bytes take, for rows of so many outputs."""
    rests = Rests.of(runs, size, width, unit)
    return runs * (size // unit.step) + rests.words if rests else runs * -(-size // unit.step)


def tile_of(width: int, unit: Unit, spare: int = 0) -> int:
    """Pixels of a tile of such a row, `spare` more than usual at most."""
    return best_tile(width, range(min(unit.max_tile + spare, width), 0, -1))


def block_inputs(op: Conv2d, block: int, pair: int) -> tuple[int, int]:
    """The input channels, first and behind the last, of the groups that a block of output channels touches."""
    out_per_group = op.out_channels // op.groups
    last = min(block * pair + pair, op.out_channels) - 1
    per_group = op.weight.shape[1]
    return block * pair // out_per_group * per_group, (last // out_per_group + 1) * per_group


def depth_of(op: Conv2d, unit: Unit, stored: int) -> int:
    """Input channels that each block reads: enough for the one that touches most, in whole steps."""
    if op.groups == 1:
        return stored
    ranges = [block_inputs(op, block, unit.pair) for block in range(-(-op.out_channels // unit.pair))]
    return min(-(-max(end - start for start, end in ranges) // unit.step) * unit.step, stored)


def run_of(op: Conv2d, unit: Unit, stored: int) -> int:
    """Bytes that lie together in an image of so many channels."""
    depth = depth_of(op, unit, stored)
    together = op.window.dilations[1] == 1 and depth == stored
    return op.window.kernel[1] * depth if together else depth
