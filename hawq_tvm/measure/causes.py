"""Why little is left of a value in integers: each cause has numbers that show it, and a sentence.

A value loses in three places, whose ratios `hawq_tvm.measure.sqnr` tells apart: where its inputs are rounded, where the
weights are, and where the result is, its clipping included. Each is held to what its bits can be expected to keep
(`least_db`), so that a layer of 4 bits is not blamed for having 4 bits. What a range does wrong is told of the value
that has it, not of its readers again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hawq_tvm.core.float_ir import PASS_THROUGH, WEIGHTED, FloatGraph, FloatNode
from hawq_tvm.core.ir import Graph, Node
from hawq_tvm.core.ops import Conv2d, WeightedOperator
from hawq_tvm.measure.meters import Meter

LEAST_RESULT_DB = 15.0
"""What the integer network as a whole should keep of its result; ResNet-50, MobileNet-V2 and SqueezeNet keep 22 to 25
at INT8 and lose less than half a point there; SqueezeNet at W4/A8 by nearest rounding keeps 14 and loses 14 points."""

LEAST_BULK_SHARE = 0.5
"""Of a value's bits, how many its bulk should use; those networks' least are 6.0 of 8 and 2.3 of 4."""

LEAST_RANGE_USE = 0.125
"""Of a range, how much the largest value should use: beyond three bits are lost; those networks' least is 0.7."""

_WEAK_DB = 10.0  # under it a channel keeps less than one and a half bits
_FAR_APART = 16.0  # times: what costs all others four bits
_REFITTED_DB = 1.0  # what weights lose less in the network than alone where they make up for errors of earlier layers
MOST_WARNINGS = 8
"""Sentences that are told; the figures of all values are stored anyhow."""


def least_db(bits: int) -> float:
    """What rounding to so many bits should leave: 23 dB of 8 bits, 2 dB of 4.

    Over every layer of the three ImageNet networks, each of the three places by itself, the least seen is 26.3 dB at 8
    bits and 4.5 dB at 4 bits by nearest rounding, MobileNet-V2's, which is broken there: 2.5 to 3 dB above this line.
    """
    return 23.0 - 5.25 * (8 - bits)


def find_causes(float_graph: FloatGraph, integer_graph: Graph, meters: Mapping[str, Meter]) -> tuple[str, ...]:
    """A sentence for every place where fidelity falls off: what, how far, why, and what to try.

    Args:
        float_graph: what was integerised.
        integer_graph: what became of it.
        meters: of its values.

    Returns:
        Sentences, in the network's order, the result's last; at most `MOST_WARNINGS` and one that counts the others.
    """
    search = _Search(float_graph, integer_graph, meters)
    found = list(search.sentences())
    if len(found) > MOST_WARNINGS:
        more = len(found) - MOST_WARNINGS
        found[MOST_WARNINGS:] = [
            f"{more} more places keep little of their signal; fidelity.json holds the figures of all"
        ]
    return (*found, *search.of_the_result())


@dataclass(eq=False)
class _Search:
    """One walk over the integer graph."""

    float_graph: FloatGraph
    graph: Graph
    meters: Mapping[str, Meter]

    def __post_init__(self) -> None:
        self.floats = self.float_graph.by_name
        self.blamed: set[str] = set()  # values whose range was told of

    def sentences(self) -> Iterator[str]:
        yield from self._of_the_range(self.graph.input_name)
        for node in self.graph:
            if node.name not in self.meters:
                continue
            yield from self._of_branches(node)
            yield from self._of_the_range(node.name)
            yield from self._of_weights(node)
            yield from self._of_inputs(node)

    def _is_low(self, ratio: float | None, bits: int) -> bool:
        return ratio is not None and ratio < least_db(bits)

    # the range of a value

    def _of_the_range(self, name: str) -> Iterator[str]:
        meter = self.meters[name]
        bits, ratio, use, bulk = meter.type.dtype.bits, meter.db("output"), meter.range_use, meter.effective_bits
        if use is None or bulk is None or self._shares_a_quantiser(name):
            return
        if name not in self.floats and self.blamed & set(self._inputs(name)):
            self.blamed.add(name)  # a narrower copy
            return
        kept = "nothing" if ratio is None else f"{ratio:.0f} dB"
        low, clips = self._is_low(ratio, bits), 2 * meter.clipped_noise > meter.noise["output"].sum()
        if low and clips:
            self.blamed.add(name)
            yield (
                f"'{name}' keeps {kept} of its signal: its range ends at {meter.limit:.3g} and clips "
                f"{meter.clipped_share:.2%} of its elements, which reach {meter.largest:.3g}; calibrate with "
                "--observer max or on more samples, or widen it in ranges.json"
            )
        elif use < LEAST_RANGE_USE:
            self.blamed.add(name)
            yield (
                f"'{name}' uses {use:.1%} of its range: that ends at {meter.limit:.3g}, and its elements reach "
                f"{meter.largest:.3g}; calibrate on samples like those that are evaluated, or narrow it in ranges.json"
            )
        elif bulk < LEAST_BULK_SHARE * bits or low:
            self.blamed.add(name)
            yield (
                f"outliers set the range of '{name}': 99.9% of its elements lie under {_share(meter):.2%} of it and "
                f"use {bulk:.1f} of its {bits} bits; calibrate with --observer mse, or find what makes the outliers, "
                f"which reach {meter.largest:.3g}"
            )

    def _inputs(self, name: str) -> tuple[str, ...]:
        return next((node.inputs for node in self.graph if node.name == name), ())

    def _shares_a_quantiser(self, name: str) -> bool:
        """Whether a value has the scale of a concatenation that joins it: then that is asked, branch by branch."""
        readers = [node for node in self.graph if name in node.inputs]
        while len(readers) == 1 and self.floats.get(readers[0].name, _NOTHING).kind in PASS_THROUGH:
            passed = readers[0].name
            readers = [node for node in self.graph if passed in node.inputs]
        return len(readers) == 1 and readers[0].op.kind == "concat"

    def _of_branches(self, node: Node) -> Iterator[str]:
        """A concatenation has one scale for all its branches."""
        if node.op.kind != "concat":
            return
        meter, sizes = self.meters[node.name], [self.graph.types[name].shape[0] for name in node.inputs]
        ends = np.cumsum(sizes)
        parts = [slice(int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)]
        ratios = [_ordered(meter.db("output", part)) for part in parts]
        strengths = [float(np.sqrt(meter.signal[part].mean())) for part in parts]
        weakest = int(np.argmin(ratios))
        if ratios[weakest] < least_db(node.type.dtype.bits) and max(strengths) > strengths[weakest]:
            self.blamed.add(node.name)
            yield (
                f"one scale serves branches of '{node.name}' that lie {max(strengths) / strengths[weakest]:,.0f} times "
                f"apart: of '{node.inputs[weakest]}' it keeps {ratios[weakest]:.0f} dB; bring them to one size in the "
                "network, as with a batch norm on each before they meet"
            )

    def _metered(self, name: str) -> Meter:
        """The meter of a value, or of what it is a view of."""
        return self.meters[name] if name in self.meters else self.meters[self.float_graph.source(name)]

    # the weights of a layer

    def _of_weights(self, node: Node) -> Iterator[str]:
        op, meter = node.op, self.meters[node.name]
        ratio = meter.db("weights")
        if not isinstance(op, WeightedOperator) or not self._is_low(ratio, op.format.bits):
            return
        if _ordered(meter.db("accumulated")) > _ordered(ratio) + _REFITTED_DB:
            return
        made = self.floats[node.name]
        assert made.weight is not None
        lost = float((op.weight[made.weight != 0] == 0).mean())
        yield (
            f"the weights of '{node.name}' keep {ratio:.0f} dB of its result at {op.format.bits} bits, and {lost:.0%} "
            f"of them are rounded to 0: {_why_weights(made, op)}"
        )

    # what a layer reads

    def _of_inputs(self, node: Node) -> Iterator[str]:
        ratio = self.meters[node.name].db("inputs")
        bits = min(self.graph.types[name].dtype.bits for name in node.inputs)
        sources = [name if name in self.meters else self.float_graph.source(name) for name in node.inputs]
        if node.op.kind in ("requantize", "concat") or not self._is_low(ratio, bits) or self.blamed & set(sources):
            return
        why = next(filter(None, (self._far_apart(name) for name in sources)), None)
        yield f"'{node.name}' keeps {ratio:.0f} dB of its result after its inputs are rounded to {bits} bits: " + (
            f"it takes away what they have in common, and little is left; {_more_bits(node.name, bits, 'inputs')}"
            if why is None
            else f"{why}; bring them to one size before, as with a batch norm there, or take out what is not needed"
        )

    def _far_apart(self, name: str) -> str | None:
        """What the one scale of a value serves that lies too far apart: terms of a sum, or channels."""
        meter = self.meters[name]
        noise, signal = meter.noise["output"], meter.signal
        for term in self._terms(name):
            strength = self._metered(term).signal.sum()
            if 0 < strength < noise.sum():
                apart = float(np.sqrt(signal.sum() / strength))
                return f"one scale serves the sum '{name}' and '{term}', a term of it {apart:,.0f} times smaller"
        live = meter.live
        weak = live & (noise * 10 ** (_WEAK_DB / 10) > signal)
        if not weak.any() or meter.channel_spread < _FAR_APART:
            return None
        return (
            f"one scale serves channels of '{name}' up to {meter.channel_spread:,.0f} times apart, and {weak.sum()} of "
            f"the {live.sum()} that carry a signal keep less than {_WEAK_DB:.0f} dB"
        )

    def _terms(self, name: str) -> tuple[str, ...]:
        """What a value is a sum of; the products of a layer with a residual are not at hand by themselves."""
        made = self.floats.get(name)
        if made is None:
            return ()
        return made.inputs if made.kind == "add" else made.inputs[1:] if made.kind in WEIGHTED else ()

    # the network as a whole

    def of_the_result(self) -> Iterator[str]:
        result = self._metered(self.graph.output).db("accumulated")
        if result is None or result >= LEAST_RESULT_DB:
            return
        low = (name for name, meter in self.meters.items() if _ordered(meter.db("accumulated")) < LEAST_RESULT_DB)
        start = next(low)
        meter = self.meters[start]
        worst = min(_PLACES, key=lambda view: _ordered(meter.db(view)))
        at_least = min(_ordered(other.db("alone")) for other in self.meters.values())
        yield (
            f"the integer network as a whole keeps {result:.0f} dB of its result, where no layer alone keeps less than "
            f"{at_least:.0f}: it first falls under {LEAST_RESULT_DB:.0f} dB at '{start}', which alone keeps "
            f"{_ordered(meter.db('alone')):.0f} dB and loses most where its {_PLACES[worst]} rounded; give the layers "
            "up to there more bits (--pin NAME=w8a8), or the network a larger budget"
        )


def _ordered(ratio: float | None) -> float:
    """A ratio among others: what has no noise, or nothing to lose, stands above all."""
    return float("inf") if ratio is None else ratio


_NOTHING = FloatNode("", "", (), ())
_PLACES = {"inputs": "inputs are", "weights": "weights are", "output": "result is"}


def _share(meter: Meter) -> float:
    """How far into its range the bulk of a value reaches."""
    return ((meter.bulk or 0) + 0.5) / meter.type.dtype.hi


def _more_bits(layer: str, bits: int, what: str) -> str:
    """Advice for a layer whose inputs or weights are at so many bits."""
    if bits < 8:
        return f"hold it at more bits (--pin '{layer}=w8a8')"
    return f"no integers of 8 bits serve such {what}, so change the network there and train it on"


def _why_weights(made: FloatNode, op: WeightedOperator) -> str:
    """What sets the scales of a layer's weights, and what to try."""
    rows = _by_row(made)  # [out, in / groups]
    reach = rows.max(axis=0)
    usual = float(np.median(reach[reach > 0]))
    column = int(reach.argmax())
    advice = _more_bits(made.name, op.format.bits, "weights")
    if not (isinstance(op, Conv2d) and op.groups > 1) and reach[column] > _FAR_APART * usual:
        return (
            f"those of input channel {column} are {reach[column] / usual:,.0f} times the others and set their scales; "
            f"take that channel out if it is dead, or {advice}"
        )
    assert made.weight is not None
    magnitudes = np.abs(made.weight.reshape(len(made.weight), -1).astype(np.float64))
    typical = np.median(magnitudes, axis=1)
    far = magnitudes.max(axis=1) / np.where(typical > 0, typical, np.inf)
    return (
        f"in the median output channel the largest is {np.median(far):,.0f} times the typical one and sets the scale; "
        f"{advice}"
    )


def _by_row(made: FloatNode) -> NDArray[np.float64]:
    """The largest magnitudes of a layer's weights, float64 [out, in / groups]."""
    assert made.weight is not None
    return np.asarray(np.abs(made.weight.astype(np.float64)).reshape(*made.weight.shape[:2], -1).max(axis=2))
