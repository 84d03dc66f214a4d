"""The loss that one changed layer causes in a network: measured, not predicted.

The loss is how far the network's result moves from that of a reference, the float network, averaged over samples
(`hawq_tvm.posttraining.divergence`), which needs no labels; and beside it, where samples have labels, how much the
cross-entropy against them rises.

Samples pass in pieces, each once through the network in its order (`hawq_tvm.posttraining.changes`). Pieces run
side by side (`hawq_tvm.backends.pytorch.threads`), each keeps its live values alone, and sums are taken in the pieces'
order, so that the same samples give the same losses on any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.threads import iterate_pieces
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.float_ir import FloatNode
from hawq_tvm.posttraining.changes import Change, Live, Network, Runner
from hawq_tvm.posttraining.divergence import output_divergence
from hawq_tvm.sources.samples import Batch

Key = TypeVar("Key", bound=Hashable)

PIECE = 4
"""Samples that pass at once: their values stay in memory together, and more were not seen to be faster."""


@dataclass(frozen=True)
class SampleLosses:
    """What each sample loses by one change, in the order of the samples.

    Attributes:
        divergence: float64 [samples], see `hawq_tvm.posttraining.divergence`.
        rise: float64 [samples], of the cross-entropy against the sample's label; below 0 where the change helps. None
            where samples have no labels.
    """

    divergence: Tensor
    rise: Tensor | None


_Look = Callable[[int, FloatNode, Change, Live], Tensor]
"""What is seen of a change at the node of that index, float64 [N, ...]."""


@torch.no_grad()
def sample_losses(
    network: Network,
    changes: Mapping[Key, Change],
    batches: Iterable[Batch],
    *,
    reference: Network,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[Key, SampleLosses]:
    """What each sample loses with each change alone.

    Args:
        network: that is changed.
        changes: by any key.
        batches: pieces of the samples, all with labels or none.
        reference: whose results are wanted.
        threads: pieces that run side by side.
        progress: called with the number of samples done.

    Raises:
        SensitivityError: no samples, or a result that is not finite.
    """
    runner, wanted = _runner(network, changes), Runner(reference)

    def looker(batch: Batch) -> _Look:
        expected = wanted.run(batch.images)

        def look(index: int, node: FloatNode, change: Change, live: Live) -> Tensor:
            got = runner.rest(index, runner.changed(node, change, live), live)
            losses = [output_divergence(expected, got)]
            if batch.labels is not None:
                losses.append(_cross_entropy(got, batch.labels) - _cross_entropy(expected, batch.labels))
            return torch.stack(losses, 1)

        return look

    found = _looks(runner, changes, batches, looker, threads, progress)
    losses = {key: torch.cat(parts) for key, parts in found.items()}
    _check({changes[key].layer: float(loss.sum()) for key, loss in losses.items()})
    return {key: SampleLosses(loss[:, 0], loss[:, 1] if loss.shape[1] > 1 else None) for key, loss in losses.items()}


def layer_losses(
    network: Network,
    changes: Mapping[Key, Change],
    pieces: Iterable[Tensor],
    *,
    reference: Network,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[Key, float]:
    """The divergence that each change alone causes, as a mean over samples; see `sample_losses`.

    Args:
        network: that is changed.
        changes: by any key.
        pieces: float32 [N, ...] samples.
        reference: whose results are wanted.
        threads: pieces that run side by side.
        progress: called with the number of samples done.

    Raises:
        SensitivityError: no samples, or a result that is not finite.
    """
    batches = (Batch(x, None) for x in pieces)
    found = sample_losses(network, changes, batches, reference=reference, threads=threads, progress=progress)
    return {key: float(losses.divergence.mean()) for key, losses in found.items()}


@torch.no_grad()
def layer_noise(
    network: Network,
    changes: Mapping[Key, Change],
    batches: Iterable[Batch],
    *,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[Key, tuple[Tensor, Tensor]]:
    """How far each change alone moves its own layer's result, and how large that result is.

    Args:
        network: that is changed.
        changes: by any key.
        batches: pieces of the samples.
        threads: pieces that run side by side.
        progress: called with the number of samples done.

    Returns:
        Sums of squares of each sample by key, float64 [samples] both: of the error, and of the result, residual
        included, before its clip.

    Raises:
        SensitivityError: no samples, or a result that is not finite.
    """
    runner = _runner(network, changes)

    def look(index: int, node: FloatNode, change: Change, live: Live) -> Tensor:
        exact = runner.changed(node, Change(node.name), live)
        error = runner.changed(node, change, live) - exact
        return torch.stack([part.flatten(1).double().square().sum(1) for part in (error, exact)], 1)

    found = _looks(runner, changes, batches, lambda batch: look, threads, progress)
    squares = {key: torch.cat(parts) for key, parts in found.items()}
    _check({changes[key].layer: float(sums.sum()) for key, sums in squares.items()})
    return {key: (sums[:, 0], sums[:, 1]) for key, sums in squares.items()}


def _runner(network: Network, changes: Mapping[Key, Change]) -> Runner:
    return Runner(network, keeps_exact=any(change.exact for change in changes.values()))


def _looks(
    runner: Runner,
    changes: Mapping[Key, Change],
    batches: Iterable[Batch],
    looker: Callable[[Batch], _Look],
    threads: int,
    progress: Callable[[int], None] | None,
) -> dict[Key, list[Tensor]]:
    """What `looker` of a batch sees of each change, batch by batch."""
    by_layer = _by_layer(changes)

    def seen(batch: Batch) -> tuple[int, dict[Key, Tensor]]:
        look, found = looker(batch), dict[Key, Tensor]()
        for index, node, live in runner.walk(batch.images):
            for key, change in by_layer.get(node.name, ()):
                found[key] = look(index, node, change, live)
        return len(batch.images), found

    total, parts = 0, {key: list[Tensor]() for key in changes}
    for count, found in iterate_pieces(seen, batches, threads):
        total += count
        for key, part in found.items():
            parts[key].append(part)
        if progress is not None:
            progress(total)
    if not total:
        raise _no_samples()
    return parts


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each sample, float64 [N]."""
    return F.cross_entropy(logits.flatten(1).double(), labels, reduction="none")


@torch.no_grad()
def network_loss(network: Network, pieces: Iterable[Tensor], *, reference: Network, threads: int = 1) -> float:
    """What a network loses beside a reference, as a mean over samples.

    Args:
        network: with all that is rounded in it.
        pieces: float32 [N, ...] samples.
        reference: whose results are wanted.
        threads: pieces that run side by side.

    Raises:
        SensitivityError: no samples, or a result that is not finite.
    """
    runner, wanted = Runner(network), Runner(reference)
    losses = list(iterate_pieces(lambda x: output_divergence(wanted.run(x), runner.run(x)), pieces, threads))
    if not losses:
        raise _no_samples()
    loss = float(torch.cat(losses).mean())
    _check({network.graph.output: loss})
    return loss


@torch.no_grad()
def mean_results(
    network: Network, changes: Mapping[Key, Change], pieces: Iterable[Tensor], *, threads: int = 1
) -> dict[Key, Tensor]:
    """Each output channel's mean over samples and positions, residual included, before clip and storing.

    Args:
        network: that is changed.
        changes: by any key; each alone.
        pieces: float32 [N, ...] samples.
        threads: pieces that run side by side.

    Returns:
        float64 [out] by key.

    Raises:
        SensitivityError: no samples.
    """
    runner = _runner(network, changes)
    by_layer = _by_layer(changes)

    def means(x: Tensor) -> tuple[int, dict[Key, Tensor]]:
        found = dict[Key, Tensor]()
        for _, node, live in runner.walk(x):
            for key, change in by_layer.get(node.name, ()):
                result = runner.changed(node, change, live)
                over = tuple(dim for dim in range(result.dim()) if dim != 1)
                found[key] = result.double().mean(over) * len(x)
        return len(x), found

    sums, total = dict[Key, Tensor](), 0
    for count, found in iterate_pieces(means, pieces, threads):
        total += count
        for key, mean in found.items():
            sums[key] = sums[key] + mean if key in sums else mean
    if not total:
        raise _no_samples()
    return {key: mean / total for key, mean in sums.items()}


def with_means_of(
    reference: Network,
    network: Network,
    changes: Mapping[Key, Change],
    pieces: Callable[[], Iterable[Tensor]],
    *,
    threads: int = 1,
) -> dict[Key, Change]:
    """The same changes, with the biases that give each channel its mean in the reference: rounding corrects them so.

    Args:
        reference: the float network.
        network: that is changed; what its other layers do to a layer's input is made up for too.
        changes: by any key.
        pieces: gives the samples, float32 [N, ...], each time that it is called.
        threads: pieces that run side by side.
    """
    layers = {change.layer: Change(change.layer) for change in changes.values()}
    wanted = mean_results(reference, layers, pieces(), threads=threads)
    got = mean_results(network, changes, pieces(), threads=threads)
    corrected = {}
    for key, change in changes.items():
        bias = network.biases[change.layer] if change.bias is None else change.bias
        corrected[key] = replace(change, bias=(bias.double() + wanted[change.layer] - got[key]).float())
    return corrected


def _by_layer(changes: Mapping[Key, Change]) -> dict[str, list[tuple[Key, Change]]]:
    table: dict[str, list[tuple[Key, Change]]] = {}
    for key, change in changes.items():
        table.setdefault(change.layer, []).append((key, change))
    return table


def _no_samples() -> SensitivityError:
    return SensitivityError("there are no samples to measure losses on; give at least one")


def _check(losses: Mapping[str, float]) -> None:
    for name, loss in losses.items():
        if not isfinite(loss):
            raise SensitivityError(
                f"the network's result is not finite where '{name}' is quantised; check its weights and the samples"
            )
