"""What rounding a layer's weights and its input is predicted to cost, by the Fisher information of the result.

For a change d that rounding really makes, of the weights or of the input x of one sample, and g the gradient of that
sample's cross-entropy with respect to what is changed:

    form     E[(g . d)^2]                       the quadratic form of d
    length   E[|g|^2 |d|^2 / n]                 mean trace times squared length, as if d had any direction

Against labels drawn from the network's own softmax p that is the true Fisher information,

    E_y~p[g g^T] = J^T (diag(p) - p p^T) J

with J the Jacobian of the logits, which is the Gauss-Newton part of the Hessian of cross-entropy against any label, and
the whole Hessian of KL(p || q) at q = p. So the form is ``d^T H d``, and the length is the unit of Omega's mean trace x
squared error, which is ``E[d^T H d]`` for a d of that length in any direction. None carries the factor 1/2 of a Taylor
series: the predicted rise of the loss is half of each.

Against the samples' own labels it is the empirical Fisher information, which needs one backward a sample; it equals the
true one only where the network's probabilities are those of the labels (Kunstner, Balles, Hennig, arXiv 1905.12558).

HAWQ-V2 (arXiv 1911.03852), section 3.3, treats activations alike: the trace of the Hessian with respect to a layer's
activations, sample by sample. Length on the empirical Fisher, of weights and of activations, is FIT (Zandonati et al.,
arXiv 2210.08502); the form on it is what Theis et al. (arXiv 1801.05787) prune by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.threads import iterate_pieces
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.hashing import own_seed
from hawq_tvm.posttraining.simulate import Grid
from hawq_tvm.sources.samples import Batch

DRAWS = 4
"""Labels drawn a sample: each takes one backward, and the forward pass serves all."""


Width = int | WeightFormat
"""What a part is rounded to: bits of an input, the format of weights."""


@dataclass(frozen=True)
class Fisher:
    """One part of a layer under its changes, sample by sample: float64 [samples].

    Attributes:
        forms: ``(g . d)^2`` by width.
        lengths: ``|g|^2 |d|^2 / n`` by width.
        traces: ``|g|^2 / n``, n the elements of the part.
    """

    forms: Mapping[Width, Tensor]
    lengths: Mapping[Width, Tensor]
    traces: Tensor


Moves = Mapping[str, Mapping[WeightFormat, Tensor]]
"""What rounding changes the weights by, float32 [out, ...], by layer and format."""

_Part = tuple[str, str]
"""``weights`` or ``inputs``, and whose."""


def fisher_information(
    network: FloatModule,
    moves: Moves,
    grids: Mapping[str, Mapping[int, Grid]],
    batches: Iterable[Batch],
    *,
    draws: int | None = DRAWS,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[_Part, Fisher]:
    """The Fisher information's form and length of every change.

    Args:
        network: the float graph.
        moves: of the weights; a layer that is not there is not looked at.
        grids: of each layer's first input, by layer and bits; the same.
        batches: samples, taken one by one.
        draws: labels drawn a sample; None takes the samples' own.
        seed: of the draws.
        threads: samples that run side by side; the results do not depend on it.
        progress: called with the number of samples done.

    Returns:
        By part: ``("weights", layer)`` and ``("inputs", layer)``.

    Raises:
        SensitivityError: no samples, no labels where they are to be taken, or what is not finite.
    """

    def look(item: tuple[int, Tensor, Tensor | None]) -> dict[_Part, Fisher]:
        index, x, label = item
        return _one_sample(network, moves, grids, x, label, draws, own_seed(seed, index))

    found: dict[_Part, list[Fisher]] = {}
    with torch.enable_grad():
        for done, parts in enumerate(iterate_pieces(look, _one_by_one(batches), threads), 1):
            for part, fisher in parts.items():
                found.setdefault(part, []).append(fisher)
            if progress is not None:
                progress(done)
    if not found:
        raise SensitivityError("there are no samples to differentiate the loss on; give at least one")
    return {part: _joined(samples, part) for part, samples in found.items()}


def _one_by_one(batches: Iterable[Batch]) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    index = 0
    for batch in batches:
        for number in range(len(batch.images)):
            label = None if batch.labels is None else batch.labels[number : number + 1]
            yield index, batch.images[number : number + 1], label
            index += 1


def _joined(samples: list[Fisher], part: _Part) -> Fisher:
    forms = {bits: torch.cat([sample.forms[bits] for sample in samples]) for bits in samples[0].forms}
    lengths = {bits: torch.cat([sample.lengths[bits] for sample in samples]) for bits in samples[0].lengths}
    traces = torch.cat([sample.traces for sample in samples])
    if not torch.isfinite(torch.stack([traces, *forms.values(), *lengths.values()])).all():
        kind, layer = part
        what = "at the input" if kind == "inputs" else "of the weights"
        raise SensitivityError(f"the gradient {what} of '{layer}' is not finite; check weights and samples")
    return Fisher(forms, lengths, traces)


def _one_sample(
    network: FloatModule,
    moves: Moves,
    grids: Mapping[str, Mapping[int, Grid]],
    x: Tensor,
    label: Tensor | None,
    draws: int | None,
    seed: int,
) -> dict[_Part, Fisher]:
    trained = network.weights()
    leaves = {name: trained[name].detach().requires_grad_() for name in moves}
    logits, inputs = run_with_inputs(network, grids, x, weights=leaves)
    if not torch.isfinite(logits).all():
        raise SensitivityError("the network's result is not finite; check its weights and the samples")
    changes: dict[_Part, dict[Width, Tensor]] = {}
    for name, of_weights in moves.items():
        changes["weights", name] = {format: move for format, move in of_weights.items()}  # noqa: C416  wider keys
    for name, value in inputs.items():
        x = value.detach()
        changes["inputs", name] = {bits: grid.nearest(x) - x for bits, grid in grids[name].items()}
    variables = [*leaves.values(), *inputs.values()]
    labels = _labels(logits, label, draws, seed)
    sums = {part: _Sums(dict.fromkeys(row, 0.0)) for part, row in changes.items()}
    for index, drawn in enumerate(labels):
        loss = F.cross_entropy(logits, drawn, reduction="sum")
        gradients = torch.autograd.grad(
            loss, variables, retain_graph=index + 1 < len(labels), allow_unused=True, materialize_grads=True
        )
        for (part, row), gradient in zip(changes.items(), gradients, strict=True):
            sums[part].add(gradient, row)
    return {part: sums[part].fisher(changes[part], len(labels)) for part in changes}


def _labels(logits: Tensor, label: Tensor | None, draws: int | None, seed: int) -> list[Tensor]:
    if draws is not None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(logits.detach().softmax(1), draws, replacement=True, generator=generator)
        return list(drawn.T)
    if label is None:
        raise SensitivityError(
            "the samples have no labels, which the empirical Fisher information needs; name samples with labels, or "
            "take a metric that needs none, such as fisher-form or kl"
        )
    return [label]


class _Sums:
    """Sums over the labels of one sample."""

    def __init__(self, forms: dict[Width, float]) -> None:
        self.forms = forms
        self.square = 0.0

    def add(self, gradient: Tensor, changes: Mapping[Width, Tensor]) -> None:
        self.square += float(gradient.double().square().sum())
        for bits, change in changes.items():
            self.forms[bits] += float((gradient * change).double().sum()) ** 2

    def fisher(self, changes: Mapping[Width, Tensor], labels: int) -> Fisher:
        elements = next((change.numel() for change in changes.values()), 1)
        trace = torch.tensor([self.square / labels / elements], dtype=torch.float64)
        lengths = {bits: trace * change.double().square().sum() for bits, change in changes.items()}
        forms = {bits: torch.tensor([form / labels], dtype=torch.float64) for bits, form in self.forms.items()}
        return Fisher(forms, lengths, trace)


def run_with_inputs(
    network: FloatModule, layers: Collection[str], x: Tensor, *, weights: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The float network, with what some layers read as something to differentiate by.

    Args:
        network: the float graph.
        layers: whose first inputs are wanted.
        x: float32 [N, ...].
        weights: other weights for some layers, by name.

    Returns:
        Logits [N, classes], and the first input of each of the layers, in the network's order, as a view of its own:
        the gradient of a value that several layers read is that through all of them.
    """
    given = weights or {}
    values = {network.graph.input_name: x.detach().requires_grad_()}
    inputs: dict[str, Tensor] = {}
    for node in network.graph:
        read = [values[name] for name in node.inputs]
        if node.name in layers:
            inputs[node.name] = read[0] = read[0].view_as(read[0])
        values[node.name] = network.result(node, read, given.get(node.name))
    return values[network.graph.output].flatten(1), {name: inputs[name] for name in layers}
