"""A bit-serial array, as BISMO is: binary matrix products, one for each pair of bits of the two operands.

A layer is a matrix product: pixels x window times window x channels. The array holds `side` vectors of either operand
and multiplies one **plane** of each in a cycle: one bit of `word_bits` neighbours of the window, for `side` vectors.
So a product takes

    tiles of pixels x tiles of channels x words of the window x weight bits x activation bits

cycles, if data is there. Each operand has a stream of its own, `port_bits` a cycle, and a buffer; a plane arrives
vector by vector. The four rules below give HAQ's published table of MobileNet-V2 on the cloud accelerator, all 3,392
entries, to the cycle. HAQ published the table and not the rules: they were read off the table.

1. Operations run in one order, one a cycle, and wait until both planes have arrived, the last vector of a plane being
   multiplied as it arrives. Both streams run ahead; what a buffer holds is loaded once.
2. The order is: tile of the outer operand, tile of the inner one, word, bit of the inner one, bit of the outer one.
   Which operand is the outer one is the faster of the two choices.
3. A buffer holds `buffer_words` planes. An operand that is larger comes in as few chunks of whole tiles as possible,
   all of one size but the last; each pair of chunks is loaded and multiplied by itself, and nothing overlaps.
4. The images of a batch follow one another, weights loaded for each; a layer of one pixel (fully connected) takes the
   batch for its pixels. A depthwise layer takes `depthwise_channels` at a time, weights on the diagonal.

In an order of N operations the i-th starts no earlier than its planes arrive, and N - i operations end with it and
behind it. So a pair of chunks takes the largest, over all planes, of (arrival + N - i - 1), i being the first operation
that needs the plane: `_makespan` is that sentence.

Sources:
    [BISMO] Y. Umuroglu et al., BISMO, FPL 2018 (arXiv 1806.08862), and github EECS-NTNU/bismo: the array, its streams
        and buffers.
    [HAQ] K. Wang et al., HAQ, CVPR 2019 (arXiv 1811.08886), table 2; the table of cycles at github mit-han-lab/haq,
        lib/simulator/lookup_tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.ilp.simulators.accelerator import Simulated
from hawq_tvm.ilp.simulators.workload import Workload

Tiles = tuple[int, ...]
"""How many vectors each tile of an operand has."""


@dataclass(frozen=True)
class BitSerialArray:
    """One accelerator of this kind.

    Attributes:
        name: for the reader.
        origin: where its numbers come from.
        side: vectors of either operand that are multiplied at once.
        word_bits: binary products that one cell of the array sums in a cycle.
        port_bits: what each of the two streams brings in a cycle.
        buffer_words: planes that the buffer of an operand holds.
        depthwise_channels: of a depthwise layer, how many are multiplied at once.
        clock_mhz: of array and streams.
        batch: samples of a call.
        watts: what it draws at most while it works; None where that is not published.
    """

    name: str
    origin: str
    side: int
    word_bits: int
    port_bits: int
    buffer_words: int
    depthwise_channels: int
    clock_mhz: float
    batch: int
    watts: float | None

    def simulate(self, workload: Workload, weight_bits: int, activation_bits: int) -> Simulated:
        """See `Accelerator`."""
        cycles = self.cycles(workload, weight_bits, activation_bits)
        latency_us = cycles / self.clock_mhz
        energy_uj = None if self.watts is None else self.watts * latency_us / self.batch
        return Simulated(cycles, latency_us, energy_uj)

    def cycles(self, workload: Workload, weight_bits: int, activation_bits: int) -> int:
        """Cycles of a whole batch."""
        pixels, images = (self.batch, 1) if workload.pixels == 1 else (workload.pixels, self.batch)
        products, channels, window = workload.groups, workload.out_channels // workload.groups, workload.window
        if workload.is_depthwise:
            together = min(self.depthwise_channels, workload.groups)
            products = _ceil(workload.groups, together)
            channels, window = channels * together, together * prod(workload.kernel)
        return images * products * self.product_cycles(pixels, window, channels, weight_bits, activation_bits)

    def product_cycles(self, pixels: int, window: int, channels: int, weight_bits: int, activation_bits: int) -> int:
        """Cycles of a matrix product, pixels x window times window x channels."""
        words = [min(self.word_bits, window - start) for start in range(0, window, self.word_bits)]
        beats = [_ceil(bits, self.port_bits) for bits in words]  # cycles that one vector's plane is loaded in
        at_once = max(
            1, self.buffer_words // max(weight_bits, activation_bits)
        )  # words of one tile that a buffer holds
        return sum(
            self._piece_cycles(pixels, channels, beats[start : start + at_once], weight_bits, activation_bits)
            for start in range(0, len(beats), at_once)
        )

    def _piece_cycles(
        self, pixels: int, channels: int, beats: Sequence[int], weight_bits: int, activation_bits: int
    ) -> int:
        """Cycles of a product whose window fits a buffer; `beats` has a number for each word of it."""
        activations = self._chunks(pixels, len(beats) * activation_bits)
        weights = self._chunks(channels, len(beats) * weight_bits)
        return sum(
            alike
            * other_alike
            * min(
                _makespan(tiles, others, beats, activation_bits, weight_bits),
                _makespan(others, tiles, beats, weight_bits, activation_bits),
            )
            for tiles, alike in activations.items()
            for others, other_alike in weights.items()
        )

    def _chunks(self, vectors: int, planes: int) -> Counter[Tiles]:
        """An operand's chunks, `planes` a tile: how often each kind occurs."""
        tiles = tuple(min(self.side, vectors - start) for start in range(0, vectors, self.side))
        chunks = _ceil(len(tiles), max(1, self.buffer_words // planes))
        size = _ceil(len(tiles), chunks)
        return Counter(tiles[start : start + size] for start in range(0, len(tiles), size))


def _makespan(outer: Tiles, inner: Tiles, beats: Sequence[int], outer_bits: int, inner_bits: int) -> int:
    """Cycles of a pair of chunks in one order; see the module."""
    words = len(beats)
    of_pair = words * outer_bits * inner_bits  # operations of a pair of tiles
    operations = len(outer) * len(inner) * of_pair
    word, outer_bit, inner_bit = np.arange(words)[:, None], np.arange(outer_bits), np.arange(inner_bits)
    in_pair = word * outer_bits * inner_bits
    outer_use = np.arange(len(outer))[:, None, None] * len(inner) * of_pair + in_pair + outer_bit
    inner_use = np.arange(len(inner))[:, None, None] * of_pair + in_pair + inner_bit * outer_bits
    latest = max(
        int((_arrivals(tiles, beats, bits) - first_use).max())
        for tiles, bits, first_use in ((outer, outer_bits, outer_use), (inner, inner_bits, inner_use))
    )
    return latest + operations - 1


def _arrivals(tiles: Tiles, beats: Sequence[int], bits: int) -> NDArray[np.int64]:
    """int64 [tiles, words, bits]: the cycle in which each plane has arrived."""
    cycles = np.multiply.outer(np.array(tiles), np.repeat(np.array(beats), bits))
    return np.cumsum(cycles, dtype=np.int64).reshape(len(tiles), len(beats), bits)


def _ceil(value: int, by: int) -> int:
    return -(-value // by)
