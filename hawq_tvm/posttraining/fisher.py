"""What rounding a layer's input is predicted to cost, by the Fisher information of the network's result.

    Omega_a(b) = E[(g . (Q_b(x) - x))^2]

with x the layer's input for one sample, Q_b(x) the same on its grid at b bits, and g the gradient of that sample's loss
with respect to x, the loss being cross-entropy against a label drawn from the network's own softmax p. The drawing is
what makes it the true Fisher information:

    E_y~p[g g^T] = J^T (diag(p) - p p^T) J

with J the Jacobian of the logits, which is the Gauss-Newton part of the Hessian of cross-entropy against any label, and
the whole Hessian of KL(p || q) at q = p. So Omega_a is ``d^T H d`` for the change d that rounding really makes, and in
the unit of Omega's mean trace x squared error, which is ``E[d^T H d]`` for a d of that length in any direction. Neither
carries the factor 1/2 of a Taylor series: the predicted rise of the loss is half of either.

HAWQ-V2 (arXiv 1911.03852), section 3.3, treats activations alike: the trace of the Hessian with respect to a layer's
activations, sample by sample. Here the quadratic form itself is taken, since a gradient a sample gives it at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.pytorch.threads import iterate_pieces
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.posttraining.simulate import Grid
from hawq_tvm.posttraining.walk import own_seed

DRAWS = 4
"""Labels drawn a sample: each takes one backward, and the forward pass serves all."""


def input_sensitivities(
    network: FloatModule,
    grids: Mapping[str, Mapping[int, Grid]],
    pieces: Iterable[Tensor],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, dict[int, float]]:
    """Omega_a of every layer at every width.

    Args:
        network: the float graph.
        grids: of each layer's first input, by layer and bits.
        pieces: float32 [N, ...] samples.
        draws: labels drawn a sample.
        seed: of the labels.
        threads: pieces that run side by side; the results do not depend on it.

    Raises:
        SensitivityError: no samples, or a gradient that is not finite.
    """

    def squares(piece: tuple[int, Tensor]) -> tuple[int, dict[str, dict[int, float]]]:
        index, x = piece
        return len(x), _squares(network, grids, x, draws, _generator(seed, index))

    total, sums = 0, {name: dict.fromkeys(widths, 0.0) for name, widths in grids.items()}
    with torch.enable_grad():
        for count, found in iterate_pieces(squares, enumerate(pieces), threads):
            total += count
            for name, row in found.items():
                for bits, value in row.items():
                    sums[name][bits] += value
    if not total:
        raise SensitivityError("there are no samples to differentiate the loss on; give at least one")
    for name, row in sums.items():
        if not torch.isfinite(torch.tensor(list(row.values()))).all():
            raise SensitivityError(f"the gradient at the input of '{name}' is not finite; check weights and samples")
    return {name: {bits: value / (total * draws) for bits, value in row.items()} for name, row in sums.items()}


def _generator(seed: int, index: int) -> torch.Generator:
    """Draws of its own for each piece."""
    return torch.Generator().manual_seed(own_seed(seed, index))


def _squares(
    network: FloatModule, grids: Mapping[str, Mapping[int, Grid]], x: Tensor, draws: int, generator: torch.Generator
) -> dict[str, dict[int, float]]:
    """``(g . d)^2`` of one piece, summed over its samples and draws."""
    logits, inputs = _with_inputs(network, grids, x)
    if not torch.isfinite(logits).all():
        raise SensitivityError("the network's result is not finite; check its weights and the samples")
    moves = {
        name: {bits: (grid.nearest(inputs[name].detach()) - inputs[name].detach()) for bits, grid in row.items()}
        for name, row in grids.items()
    }
    sums = {name: dict.fromkeys(row, 0.0) for name, row in grids.items()}
    drawn = torch.multinomial(logits.detach().softmax(1), draws, replacement=True, generator=generator)
    for draw in range(draws):
        loss = F.cross_entropy(logits, drawn[:, draw], reduction="sum")
        gradients = torch.autograd.grad(
            loss, list(inputs.values()), retain_graph=draw + 1 < draws, materialize_grads=True
        )
        for name, gradient in zip(inputs, gradients, strict=True):
            for bits, move in moves[name].items():
                products = (gradient * move).flatten(1).double().sum(1)
                sums[name][bits] += float(products.square().sum())
    return sums


def _with_inputs(network: FloatModule, layers: Collection[str], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [N, classes], and the first input of each of some layers as a view of its own.

    A view of its own, since the gradient of a value that several layers read is that through all of them.
    """
    values = {network.graph.input_name: x.detach().requires_grad_()}
    inputs: dict[str, Tensor] = {}
    for node in network.graph:
        read = [values[name] for name in node.inputs]
        if node.name in layers:
            inputs[node.name] = read[0] = read[0].view_as(read[0])
        values[node.name] = network.result(node, read)
    return values[network.graph.output].flatten(1), inputs
