"""Which observer serves a network best at each width, told by the network's output on calibration samples.

The range that fits one value's histogram best need not be the one that the result needs: that depends on what the
later layers make of the errors. So the network is run with the ranges of each candidate, its inner activations at the
width in question and its weights in float, and the candidate whose output stays nearest to the float network's is
taken. Labels are not needed, and no samples are looked at but those that calibrate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

import torch
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.threads import iterate_pieces, run_pieces
from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.quantizer import Range, RangeTable, range_at
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.posttraining.divergence import output_divergence
from hawq_tvm.posttraining.simulate import SimulatedNetwork

WIDTHS = range(2, 9)

_LEAST_SAMPLES = 32
_MACS = _LEAST_SAMPLES * 4_100_000_000  # of one run of the compared samples


@dataclass(frozen=True)
class Choice:
    """What a width takes.

    Attributes:
        observer: the one of least divergence.
        divergence: of each observer, as `Comparison` measures it.
    """

    observer: str
    divergence: Mapping[str, float]


def choose_ranges(
    tables: Mapping[str, RangeTable], widths: Iterable[int], measure: Callable[[RangeTable, int], float]
) -> tuple[RangeTable, dict[int, Choice]]:
    """Compare observers at each width and put together the ranges of the best.

    Args:
        tables: the ranges that each observer finds; of those that are equally good, the first is taken.
        widths: to be compared, 8 bits in any case. They are settled from 8 downwards, so that what stands at more bits
            has its own choice while fewer are compared. A width that is not among them takes the choice of the next
            wider one that is.
        measure: how far the network's output is off with these ranges where inner activations have so many bits.

    Returns:
        The ranges, and what each compared width takes.
    """
    choices: dict[int, Choice] = {}
    chosen: dict[int, str] = {}
    for bits in sorted({*widths, 8}, reverse=True):
        measured: list[tuple[RangeTable, float]] = []
        for name in tables:
            table = _by_width(tables, {**chosen, bits: name})
            known = [found for other, found in measured if other == table]  # equal ranges need no second run
            measured.append((table, known[0] if known else measure(table, bits)))
        divergence = {name: found for name, (_, found) in zip(tables, measured, strict=True)}
        chosen[bits] = min(divergence, key=divergence.__getitem__)
        choices[bits] = Choice(chosen[bits], divergence)
    return _by_width(tables, chosen), choices


def _by_width(tables: Mapping[str, RangeTable], chosen: Mapping[int, str]) -> RangeTable:
    """The ranges of the observers that are chosen for some widths; the others take those of the next wider one."""
    observers = {bits: chosen[min(width for width in chosen if width >= bits)] for bits in WIDTHS}
    values = next(iter(tables.values()))
    table: dict[str, Range | Mapping[int, Range]] = {}
    for value in values:
        found = {bits: range_at(tables[observer], value, bits) for bits, observer in observers.items()}
        table[value] = found[8] if len(set(found.values())) == 1 else found
    return table


class Comparison:
    """How far quantised activations bring a network's output from the float network's."""

    def __init__(
        self,
        graph: FloatGraph,
        samples: Sequence[Tensor],
        *,
        threads: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Run the float network.

        Args:
            graph: from capture.
            samples: float32 [N, ...] pieces; results depend on how they are cut, but not on `threads`.
            threads: pieces that run side by side.
            progress: called with the number of samples that have just been run.
        """
        self._graph = graph
        self._samples = samples
        self._threads = threads
        self._progress = progress or (lambda samples: None)
        network = FloatModule(graph)
        with torch.no_grad():
            self._expected = run_pieces(network, samples, threads)
        self._progress(sum(map(len, samples)))

    def divergence(self, ranges: RangeTable, bits: BitConfig) -> float:
        """The mean over the samples of `output_divergence` between the float output and the quantised one.

        Raises:
            CalibrationError: a value without a range, or with that of a dead layer.
        """
        network = SimulatedNetwork(self._graph, ActivationTypes(self._graph, ranges, bits))
        pieces = zip(self._samples, self._expected, strict=True)
        found: list[float] = []
        for each in iterate_pieces(lambda piece: output_divergence(piece[1], network(piece[0])), pieces, self._threads):
            found.extend(each.tolist())
            self._progress(len(each))
        return fsum(found) / len(found)


def samples_to_compare(graph: FloatGraph) -> int:
    """On how many samples candidates are compared: 32 of a ResNet-50, and more of what takes less time.

    All candidates see the same samples, so that what makes a sample hard is in each of them: over 32 images the mean
    divergence has a standard error of a fifth to a third, and most of it is common. Four candidates at two widths and
    the float network are nine runs, about as long as observing 300 samples of a ResNet-50.
    """
    return max(_LEAST_SAMPLES, _MACS // max(1, sum(layer.macs for layer in graph.layers)))
