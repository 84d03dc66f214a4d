"""Which layers cause a network's loss: each alone quantised, and all but it; and what to try for the worst.

Alone, a layer stands in the float network; the bias makes up for what its channels' means lose there, as rounding sees
to where the layer is deployed. In "all but it" the network is quantised and the layer reads its input as it was before
it was rounded, has its trained weights, and a bias that makes up for what the other layers do to its means.

Least-error rounding fits the layers to each other's errors on the calibration samples: there a network was seen to lose
0.003 that loses 0.1 on others, and to lose more with any one layer put back in float. So what the whole network loses,
and what all but one layer do, is measured on samples held out; a layer alone, on those that calibrated.
Even so, later layers stay fitted to the errors of a layer that is put back, so that all but it may lose more than all:
the ranking is that of layers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.float_ir import FloatGraph, FloatNode
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.measure.debug_report import DebugReport, LayerCause
from hawq_tvm.posttraining.changes import Change, Network, RealNetwork
from hawq_tvm.posttraining.layer_losses import layer_losses, network_loss, with_means_of
from hawq_tvm.posttraining.simulate import Grid, SimulatedNetwork

NEGLIGIBLE = 0.01
"""A loss that was seen to leave top-1 within its noise, on the ImageNet networks at 8 bits."""

_WORST, _SHARE = 3, 0.05  # so many layers are spoken of, where they are so much of what all lose alone
_RATIOS = (0.7, 0.85, 1.2, 1.5)  # ranges that are tried instead of the one there is
_BETTER = 0.8  # of the loss: what another range must save to be spoken of
_CLOSE = 3  # times the loss on calibration samples that others may have before it is spoken of
_ROWS = 10  # positions an input of a layer that are enough to fit its weights on

_Part = Literal["weights", "input", "both"]


@dataclass(frozen=True)
class Quantised:
    """A network as it is deployed.

    Attributes:
        graph: from capture.
        types: of its values.
        weights: of every layer.
        rounded: whether `weights` are as rounding left them, their biases corrected; else nearest integers.
        corrects_means: whether rounding was to correct biases.
    """

    graph: FloatGraph
    types: ActivationTypes
    weights: Mapping[str, LayerWeights]
    rounded: bool = True
    corrects_means: bool = True

    def simulated(self) -> SimulatedNetwork:
        """The network in reals on the grids of its integers."""
        return SimulatedNetwork(
            self.graph,
            self.types,
            {name: _restored(found) for name, found in self.weights.items()},
            {name: torch.from_numpy(found.bias) for name, found in self.weights.items()},
        )

    def grid(self, layer: FloatNode) -> Grid:
        """What a layer reads its input on."""
        return Grid.of(self.types.reads(layer))


def find_causes(
    network: Quantised,
    pieces: Sequence[Tensor],
    held_out: Sequence[Tensor],
    *,
    calibrated_on: int,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> DebugReport:
    """Measure what each layer costs.

    Args:
        network: as it is deployed.
        pieces: float32 [N, ...] calibration samples.
        held_out: float32 [N, ...] samples that rounding did not look at.
        calibrated_on: how many samples rounding looked at, for the advice.
        threads: pieces that run side by side.
        progress: called with the number of samples done, of both sets.
    """
    graph, count = network.graph, sum(map(len, pieces))
    real, simulated = RealNetwork(graph), network.simulated()
    corrects = network.rounded and network.corrects_means

    def corrected(of: Network, changes: dict[tuple[str, str], Change]) -> dict[tuple[str, str], Change]:
        return with_means_of(real, of, changes, lambda: pieces, threads=threads) if corrects else changes

    alone = corrected(real, {key: change for layer in graph.layers for key, change in _alone(network, layer)})
    loss = layer_losses(real, alone, pieces, reference=real, threads=threads, progress=progress)
    left = corrected(
        simulated,
        {("without", name): Change(name, real.weights[name], real.biases[name], exact=True) for name in real.weights},
    )
    without = layer_losses(
        simulated,
        left,
        held_out,
        reference=real,
        threads=threads,
        progress=None if progress is None else lambda done: progress(count + done),
    )
    causes = [
        LayerCause(
            name=layer.name,
            bits=repr(network.types.bits.layers[layer.name]),
            parameters=0 if layer.weight is None else int(layer.weight.size),
            macs=layer.macs,
            weights=loss["weights", layer.name],
            input=loss["input", layer.name],
            both=loss["both", layer.name],
            without=without["without", layer.name],
        )
        for layer in graph.layers
    ]
    causes.sort(key=lambda cause: -cause.both)
    whole = network_loss(simulated, held_out, reference=real, threads=threads)
    fitted = network_loss(simulated, pieces, reference=real, threads=threads)
    wider = {name: _better_range(network, real, name, pieces, threads) for name in _with_bad_inputs(causes)}
    advice = (*_advice(graph, whole, causes, wider, calibrated_on), *_too_close(whole, fitted, calibrated_on))
    return DebugReport(count, sum(map(len, held_out)), whole, fitted, tuple(causes), advice, rounded=network.rounded)


def _restored(found: LayerWeights) -> Tensor:
    return torch.from_numpy(found.restored.astype(np.float32))


def _alone(network: Quantised, layer: FloatNode) -> list[tuple[tuple[str, str], Change]]:
    weight, grid = _restored(network.weights[layer.name]), network.grid(layer)
    parts: dict[_Part, Change] = {
        "weights": Change(layer.name, weight),
        "input": Change(layer.name, reads=grid),
        "both": Change(layer.name, weight, reads=grid),
    }
    return [((part, layer.name), change) for part, change in parts.items()]


def _worst(causes: Sequence[LayerCause]) -> list[LayerCause]:
    """The layers that are spoken of, of those in falling order."""
    total = sum(cause.both for cause in causes)
    return [cause for cause in causes[:_WORST] if cause.both > _SHARE * total]


def _with_bad_inputs(causes: Sequence[LayerCause]) -> list[str]:
    """Those of the worst whose input costs more than their weights."""
    return [cause.name for cause in _worst(causes) if cause.input > cause.weights]


def _better_range(
    network: Quantised, real: RealNetwork, layer: str, pieces: Sequence[Tensor], threads: int
) -> tuple[float, float] | None:
    """How many times as wide a range loses clearly less at a layer's input alone, and what; None where none does."""
    grid = network.grid(network.graph.by_name[layer])
    changes = {ratio: Change(layer, reads=replace(grid, scale=grid.scale * ratio)) for ratio in (1.0, *_RATIOS)}
    if network.rounded and network.corrects_means:
        changes = with_means_of(real, real, changes, lambda: pieces, threads=threads)
    losses = layer_losses(real, changes, pieces, reference=real, threads=threads)
    best = min(losses, key=lambda ratio: losses[ratio])
    return (best, losses[best]) if losses[best] < _BETTER * losses[1.0] else None


def _advice(
    graph: FloatGraph,
    loss: float,
    causes: Sequence[LayerCause],
    ranges: Mapping[str, tuple[float, float] | None],
    calibrated_on: int,
) -> tuple[str, ...]:
    """What to try, a sentence each."""
    if loss < NEGLIGIBLE:
        return (f"the network loses {loss:.2g} in all, which was seen to leave accuracy as it is",)
    total = sum(cause.parameters * cause.pair.weight / 8 for cause in causes)
    found: list[str] = []
    for cause in _worst(causes):
        found.append(_more_bits(cause, total))
        better = ranges.get(cause.name)
        if better is not None:
            found.append(
                f"{cause.name}: a range of its input {better[0]:g} times as wide loses {better[1]:.2g} instead of "
                f"{cause.input:.2g}; edit ranges.json and compile, or try another --observer"
            )
        rows = calibrated_on * prod(graph.by_name[cause.name].shape[1:])
        inputs = _inputs(graph.by_name[cause.name])
        if cause.weights >= cause.input and rows < _ROWS * inputs:
            found.append(
                f"{cause.name}: its {inputs:,} inputs an output were fitted on {rows:,} positions; more calibration "
                "samples (--calibration-samples) make that surer"
            )
    return tuple(found)


def _too_close(loss: float, fitted: float, calibrated_on: int) -> tuple[str, ...]:
    """What to do where rounding knows its samples too well; nothing where it does not, or where little is lost."""
    if loss < NEGLIGIBLE or loss < _CLOSE * fitted:
        return ()
    return (
        f"on samples that it was rounded on the network loses {fitted:.2g}, on others {loss:.2g}: {calibrated_on} are "
        "few; more calibration samples (--calibration-samples), or a higher --rounding-damping, bring the two nearer",
    )


def _inputs(layer: FloatNode) -> int:
    return 0 if layer.weight is None else int(layer.weight[0].size)


def _more_bits(cause: LayerCause, total: float) -> str:
    """Hold a layer at 8 bits where that helps, and what it costs."""
    pair = cause.pair
    weights = pair.weight < 8 and cause.weights >= cause.input / 4
    inputs = pair.activation < 8 and cause.input >= cause.weights / 4
    what = "weights and input" if weights and inputs else "weights" if cause.weights >= cause.input else "input"
    loss = f"{cause.name} ({cause.bits}): {cause.both:.2g} alone, most of it by its {what}; "
    if not weights and not inputs:
        return f"{loss}they have 8 bits already, so look at its range and at the samples that calibrated it"
    held = f"w{8 if weights else pair.weight}a{8 if inputs else pair.activation}"
    extra = cause.parameters * (8 - pair.weight) / 8 if weights else 0.0
    costs = f"{extra:,.0f} bytes more ({extra / total:.2%} of the weights)" if weights else "no bytes of weights"
    return f"{loss}--pin {cause.name}={held} costs {costs}"
