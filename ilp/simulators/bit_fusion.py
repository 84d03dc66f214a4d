"""A systolic array whose multipliers fuse from 2-bit bricks, as BitFusion is, with buffers that tiles must fit.

`rows` hold what a result is summed over, `columns` the results. Operands of fewer than `max_bits` bits share a
multiplier: floor(8 / weight bits) x floor(8 / activation bits) pairs at once, 2 bits being the least. So 3 bits run
like 4, and 5, 6 and 7 like 8, but are fewer to move.

A layer is cut into tiles: of the result's height and width, of input channels, of output channels, each a power of two
or the whole. A tile's weights, activations and 32-bit sums must fit half of their buffer, the other half being filled
meanwhile. Tiles follow one another in some order of the four loops; what does not change from one tile to the next
stays in its buffer, and so does what several tiles need if the buffer holds all of it (`_Tiles.moved`). Then

    cycles = compute + max(0, middle - compute) + first + last

`first` and `last` being the cycles that the port needs for what must be there before the first multiply and what
leaves after the last, `middle` for all other traffic. Of all tiles and orders, those of least traffic are taken, of
equals the fastest.

That is the authors' simulator, with four differences. Theirs takes the fastest tiles; it has those of least energy,
nearly all of which is traffic, as a comment, and with them traffic hardly ever rises where bits fall, which an
allocator needs. Theirs fills rows of weights up with zeros in memory, more of them at fewer bits; here they are not
stored. Theirs has no depthwise layers: here the window lies along the rows, the channels along the columns, and each
channel brings activations of its own. Theirs looks at a batch as one more loop: here samples follow one another.

Energy is power x time + energy a bit of memory x bits, each weight, activation and result moved once; where windows are
unrolled they are moved unrolled. The authors' own model (energies of the synthesised array, of buffers and of memory)
gives a quarter to a half of what HAQ prints, and HAQ does not say what it took; this one fits it, with the power that
the authors publish and one fitted number (`docs/simulators.md`).

Sources:
    [BitFusion] H. Sharma et al., Bit Fusion, ISCA 2018 (arXiv 1712.01507); the simulator at github hsharma35/bitfusion,
        bitfusion/src/simulator and bitfusion/src/optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from math import ceil, log2, prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.ilp.simulators.accelerator import Simulated
from hawq_tvm.ilp.simulators.workload import Workload

Counts = NDArray[np.int64]
"""int64 [T]: a number for each way to cut a layer into tiles."""

Size = TypeVar("Size", int, Counts)

_SUM_BITS = 32  # of a sum on its way between array, buffer and memory
_OPERANDS = ("weights", "activations", "sums")
_LOOPS = ("height", "width", "inputs", "outputs")
_ORDERS = tuple(order for order in permutations(_LOOPS) if order.index("height") < order.index("width"))
"""Height and width are cut alike, so which of them comes first makes no difference."""


@dataclass(frozen=True, eq=False)
class FusionArray:
    """One accelerator of this kind.

    Attributes:
        name: for the reader.
        origin: where its numbers come from.
        rows: multipliers that sum into one result.
        columns: results at once.
        max_bits: of an operand that takes a whole multiplier's side.
        min_bits: of one brick.
        port_bits: between buffers and memory in a cycle.
        buffer_bytes: of ``weights``, ``activations`` and ``sums``.
        clock_mhz: of array and port.
        batch: samples of a call, one after the other.
        watts: of the chip while it works.
        memory_pj: picojoules a bit from or to memory.
    """

    name: str
    origin: str
    rows: int
    columns: int
    max_bits: int
    min_bits: int
    port_bits: int
    buffer_bytes: Mapping[str, int]
    clock_mhz: float
    batch: int
    watts: float
    memory_pj: float

    def simulate(self, workload: Workload, weight_bits: int, activation_bits: int) -> Simulated:
        """See `Accelerator`."""
        cycles = self.cycles(workload, weight_bits, activation_bits)
        latency_us = cycles / self.clock_mhz
        energy_uj = self.watts * latency_us + self.memory_pj * self._bits(workload, weight_bits, activation_bits) * 1e-6
        return Simulated(cycles * self.batch, latency_us * self.batch, energy_uj)

    def fused(self, weight_bits: int, activation_bits: int) -> int:
        """Pairs of operands that one multiplier takes at once."""
        weight, activation = max(weight_bits, self.min_bits), max(activation_bits, self.min_bits)
        return (self.max_bits // weight) * (self.max_bits // activation)

    def unrolls(self, workload: Workload) -> bool:
        """Whether windows lie along the rows as a whole: where channels alone could not fill them."""
        return workload.in_channels // workload.groups < self.rows

    def cycles(self, workload: Workload, weight_bits: int, activation_bits: int) -> int:
        """Cycles of one sample; groups that are not depthwise follow one another.

        Raises:
            AllocationError: not even the smallest tile fits.
        """
        if workload.groups > 1 and not workload.is_depthwise:
            inputs, outputs = workload.in_channels // workload.groups, workload.out_channels // workload.groups
            one = replace(workload, in_channels=inputs, out_channels=outputs, groups=1)
            return workload.groups * self.cycles(one, weight_bits, activation_bits)
        tiles = _Tiles.of(self, workload, weight_bits, activation_bits)
        return min(tiles.best(order) for order in _ORDERS)[1]

    def _bits(self, workload: Workload, weight_bits: int, activation_bits: int) -> int:
        """What is moved for energy: each weight, activation and result once, results at the activations' bits."""
        results = workload.out_channels * workload.pixels
        if self.unrolls(workload):
            activations = workload.in_channels * prod(workload.kernel) * workload.pixels
        else:
            activations = workload.in_channels * prod(_input_size(workload, *workload.output))
        return workload.weights * weight_bits + (activations + results) * activation_bits


@dataclass(frozen=True, eq=False)
class _Tiles:
    """The ways to cut a layer into tiles that fit, each an entry of the arrays.

    Attributes:
        sizes: bits of a tile, by operand.
        rooms: bits of half a buffer, by operand.
        counts: how many tiles a loop takes, by loop.
        changes: the loops that change an operand, by operand.
        compute: cycles of all tiles, if all data is there.
        port_bits: as the array has it.
    """

    sizes: Mapping[str, Counts]
    rooms: Mapping[str, int]
    counts: Mapping[str, Counts]
    changes: Mapping[str, set[str]]
    compute: Counts
    port_bits: int

    @classmethod
    def of(cls, array: FusionArray, workload: Workload, weight_bits: int, activation_bits: int) -> _Tiles:
        """All that fit; raises AllocationError where none does."""
        depthwise, unrolled = workload.is_depthwise, array.unrolls(workload)
        channels = 1 if depthwise else workload.in_channels
        lanes = array.rows * array.fused(weight_bits, activation_bits)
        taps = prod(workload.kernel)
        side, inputs, outputs = _sizes(workload, channels, 1 if unrolled else array.columns)
        height, width = (np.minimum(side, whole) for whole in workload.output)
        pixels = height * width
        if unrolled and not depthwise:
            activations = pixels * taps * inputs
        else:
            activations = prod(_input_size(workload, height, width)) * (outputs if depthwise else inputs)
        sizes = {
            "weights": taps * inputs * outputs * weight_bits,
            "activations": activations * activation_bits,
            "sums": pixels * _ceil(outputs, array.columns) * array.columns * _SUM_BITS,
        }
        counts = {
            "height": _ceil(workload.output[0], height),
            "width": _ceil(workload.output[1], width),
            "inputs": _ceil(channels, inputs),
            "outputs": _ceil(workload.out_channels, outputs),
        }
        steps = _ceil(taps * inputs, lanes) if unrolled else taps * _ceil(inputs, lanes)
        compute = prod(counts.values()) * pixels * _ceil(outputs, array.columns) * steps
        rooms = {name: array.buffer_bytes[name] * 8 // 2 for name in _OPERANDS}
        fits = np.logical_and.reduce([sizes[name] <= rooms[name] for name in _OPERANDS])
        if not fits.any():
            raise AllocationError(f"{array.name}: no tile of {workload} fits its buffers; give it other latencies")
        return cls(
            {name: size[fits] for name, size in sizes.items()},
            rooms,
            {name: count[fits] for name, count in counts.items()},
            {
                "weights": {"inputs", "outputs"},
                "activations": {"height", "width", "outputs" if depthwise else "inputs"},
                "sums": {"height", "width", "outputs"},
            },
            compute[fits],
            array.port_bits,
        )

    def moved(self, operand: str, order: tuple[str, ...]) -> tuple[Counts, Counts]:
        """Bits that an operand moves from memory to its buffer, and how many of them are there at once.

        From the innermost loop outwards: a loop that does not change the operand costs nothing as long as all that the
        loops inside it need is in the buffer; one that changes it makes that more, until it no longer fits.
        """
        moved = held = self.sizes[operand]
        fits = np.ones(len(moved), dtype=bool)
        for loop in reversed(order):
            changes = loop in self.changes[operand]
            moved = moved * np.where(fits & (not changes), 1, self.counts[loop])
            fits = fits & (moved <= self.rooms[operand])
            held = np.where(fits, moved, held)
        return moved, held

    def best(self, order: tuple[str, ...]) -> tuple[int, int]:
        """Bits and cycles of the tiles of least traffic in one order of the loops, of equals the fastest."""
        moved, held = zip(*(self.moved(operand, order) for operand in _OPERANDS), strict=True)
        bits = sum(moved) + moved[-1]  # sums go both ways
        first, last = sum(held), held[-1]
        stalls = np.maximum(0, _ceil(bits - first - last, self.port_bits) - self.compute)
        cycles = self.compute + stalls + _ceil(first, self.port_bits) + _ceil(last, self.port_bits)
        pick = np.lexsort((cycles, bits))[0]
        return int(bits[pick]), int(cycles[pick])


def _sizes(workload: Workload, channels: int, columns: int) -> Counts:
    """int64 [3, T]: side of the result, input channels and output channels of every tile."""
    sides = _powers(max(workload.output))
    inputs = _powers(channels)
    outputs = [min(size * columns, workload.out_channels) for size in _powers(ceil(workload.out_channels / columns))]
    grid = np.meshgrid(sides, inputs, outputs, indexing="ij")
    return np.stack([axis.ravel() for axis in grid]).astype(np.int64)


def _input_size(workload: Workload, height: Size, width: Size) -> tuple[Size, Size]:
    """What a result of some height and width reads."""
    return (
        workload.kernel[0] + (height - 1) * workload.stride[0],
        workload.kernel[1] + (width - 1) * workload.stride[1],
    )


def _powers(whole: int) -> list[int]:
    """1, 2, 4 and so on, and the whole."""
    return [min(1 << exponent, whole) for exponent in range(ceil(log2(whole)) + 1)]


def _ceil(value: int | Counts, by: int | Counts) -> Counts:
    return np.asarray(-(-value // by))
