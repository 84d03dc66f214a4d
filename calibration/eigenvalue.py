"""The Hessian's top eigenvalue, layer by layer, by power iteration.

    v <- H_ii v / |H_ii v|        lambda = v . (H_ii v)        |v| = 1

with H_ii the layer's diagonal block of the Hessian of the mean loss over all samples. It converges to the eigenvalue
of largest magnitude. What is left, ``r = |H_ii v - lambda v|``, bounds the error: some eigenvalue lies within r of
lambda, since H_ii is symmetric (Parlett, The Symmetric Eigenvalue Problem, theorem 4.5.1), and near convergence lambda
itself is off by about r^2 over the distance to the next one. That it is the top one is what the random start makes
nearly sure, not what r proves.

All layers iterate side by side, each on its own block, so that a batch's gradients are made once a round for all of
them; a layer that has converged leaves.

Source: HAWQ (arXiv 1905.03696), its power iteration; the averaging over batches as in Q-BERT (arXiv 1909.05840),
section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq_tvm.calibration.derivatives import gradients, products
from hawq_tvm.calibration.hessian import Loss, shares_of
from hawq_tvm.core.hashing import own_seed


@dataclass(frozen=True)
class Eigenvalue:
    """The eigenvalue of largest magnitude of one layer's Hessian block.

    Attributes:
        value: its estimate, negative where the loss falls off most steeply.
        residual: ``|H v - value v|``, which bounds the distance to an eigenvalue.
        iterations: products with H that it took.
        parameters: the block's size.
    """

    value: float
    residual: float
    iterations: int
    parameters: int

    @property
    def magnitude(self) -> float:
        """``|value|``: ``|d^T H d|`` is at most this times ``|d|^2``, whatever the sign of the curvature."""
        return abs(self.value)

    @property
    def relative_error(self) -> float:
        """Residual per magnitude; 0 of a dead layer."""
        if self.residual == 0:
            return 0.0
        return self.residual / abs(self.value) if self.value else float("inf")


@dataclass(frozen=True)
class Progress:
    """Where power iteration stands, to go on from there to the same result.

    Attributes:
        found: float64 [layers, 3]: eigenvalue, residual and iterations of each layer, NaN before its first one.
        vectors: the layers' next unit vectors, by layer number; none of those that have converged.
    """

    found: Tensor
    vectors: Mapping[int, Tensor]


def top_eigenvalues(
    losses: Sequence[Loss],
    weights: Mapping[str, Tensor],
    *,
    samples: Sequence[int] | None = None,
    target_error: float = 0.1,
    max_iterations: int = 50,
    seed: int = 0,
    done: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Eigenvalue]:
    """The top eigenvalue of every layer's Hessian block of the mean loss over all samples.

    Args:
        losses: one function a batch, the mean loss over its samples; each is differentiated twice.
        weights: float32 leaf tensors by layer name.
        samples: how many samples each batch has; equally many if not given.
        target_error: a layer has converged when its residual is under this share of its eigenvalue.
        max_iterations: always stop after so many, at least 1.
        seed: of the start.
        done: what an earlier call with the same arguments kept.
        keep: is given where it stands after every round.
        progress: called with the number of rounds done.

    Returns:
        One eigenvalue a layer, 0 where the whole block is 0.

    Raises:
        SensitivityError: no batch or an empty one, an operator has no second derivative, by name; or a product is not
            finite, by layer.

    >>> scale = torch.tensor([3.0, -5.0])
    >>> loss = lambda w: 0.5 * (w["layer"] ** 2 * scale).sum()   # Hessian diag(3, -5)
    >>> round(top_eigenvalues([loss], {"layer": torch.ones(2)}, target_error=1e-3)["layer"].value, 3)
    -5.0
    """
    shares = shares_of(len(losses), samples)
    names = list(weights)
    leaves = [weights[name].detach().clone().requires_grad_() for name in names]
    if done is None:
        start = {i: _unit(_normal(leaf, own_seed(seed, i))) for i, leaf in enumerate(leaves)}
        done = Progress(torch.full((len(names), 3), torch.nan, dtype=torch.float64), start)
    found, vectors = done.found.clone(), dict(done.vectors)
    rounds = int(found[:, 2].nan_to_num(0.0).max())
    while vectors and rounds < max_iterations:
        images = _images(losses, shares, names, leaves, vectors)
        rounds += 1
        for layer, image in images.items():
            value = float((vectors[layer].double() * image).sum())
            residual = float((image - value * vectors[layer].double()).norm())
            found[layer] = torch.tensor([value, residual, rounds], dtype=torch.float64)
            if residual <= target_error * abs(value):  # both 0 of a block that is 0
                del vectors[layer]
            else:
                vectors[layer] = _unit(image).float()
        if keep is not None:
            keep(Progress(found, vectors))
        if progress is not None:
            progress(rounds)
    return {
        name: Eigenvalue(float(found[i, 0]), float(found[i, 1]), int(found[i, 2]), leaves[i].numel())
        for i, name in enumerate(names)
    }


def _images(
    losses: Sequence[Loss],
    shares: Tensor,
    names: Sequence[str],
    leaves: Sequence[Tensor],
    vectors: Mapping[int, Tensor],
) -> dict[int, Tensor]:
    """``H_ii v_i`` of some layers, float64, one graph of a batch's gradients after the other."""
    images = {layer: torch.zeros_like(vector, dtype=torch.float64) for layer, vector in vectors.items()}
    for share, loss in zip(shares.tolist(), losses, strict=True):
        found = gradients(loss(dict(zip(names, leaves, strict=True))), [leaves[layer] for layer in vectors])
        for (layer, vector), gradient in zip(vectors.items(), found, strict=True):
            (image,) = products([names[layer]], [leaves[layer]], [gradient], [vector])
            images[layer] += share * image.double()
        del found, gradient  # this batch's graph goes before the next one's is made
    return images


def _normal(leaf: Tensor, seed: int) -> Tensor:
    return torch.randn(leaf.shape, generator=torch.Generator().manual_seed(seed), dtype=leaf.dtype)


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm()
    return unit
