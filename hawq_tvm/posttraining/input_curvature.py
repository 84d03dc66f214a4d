"""The top eigenvalue of the Hessian with respect to a layer's input, sample by sample.

HAWQ-V2 (arXiv 1911.03852), section 3.3, takes the Hessian of activations for one sample at a time; that of all samples
together is block-diagonal, a block a sample. So one double backward of the losses' sum multiplies every sample's block
with a vector of its own, and power iteration (`hawq_tvm.calibration.eigenvalue`) runs on a whole batch at once. What is
kept is

    |lambda| |d|^2        d what rounding changes the input by

at least ``|d^T H d|`` for any d of that length, as HAWQ's Omega is for the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.calibration.derivatives import gradients, products
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.hashing import own_seed
from hawq_tvm.posttraining.fisher import run_with_inputs
from hawq_tvm.posttraining.simulate import Grid


@dataclass(frozen=True)
class InputCurvature:
    """Of one layer's input under one change, sample by sample: float64 [samples].

    Attributes:
        bounds: ``|lambda| |d|^2``.
        residuals: ``|H v - lambda v| |d|^2``, which bounds how far it is off.
    """

    bounds: Tensor
    residuals: Tensor


def input_curvatures(
    network: FloatModule,
    grids: Mapping[str, Mapping[int, Grid]],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    target_error: float = 0.1,
    max_iterations: int = 50,
    seed: int = 0,
) -> dict[str, dict[int, InputCurvature]]:
    """What every layer's input costs at most, by layer and bits.

    Args:
        network: the float graph.
        grids: of each layer's first input, by layer and bits.
        batches: float32 [N, ...] samples and int64 [N] labels, a graph of gradients each.
        target_error: a batch has converged when its samples' residuals together are under this share of their
            eigenvalues together, since it is their mean that counts.
        max_iterations: always stop after so many, at least 1.
        seed: of the starts.

    Raises:
        SensitivityError: no samples, an operator without a second derivative, or a product that is not finite.
    """
    found: dict[str, dict[int, list[InputCurvature]]] = {name: {b: [] for b in row} for name, row in grids.items()}
    total = 0
    for number, (images, labels) in enumerate(batches):
        with torch.enable_grad():
            logits, inputs = run_with_inputs(network, grids, images)
            slopes = gradients(F.cross_entropy(logits, labels, reduction="sum"), list(inputs.values()))
        for index, (name, slope) in enumerate(zip(inputs, slopes, strict=True)):
            key = own_seed(seed, number, index)
            value, residual = _top(name, inputs[name], slope, key, target_error, max_iterations)
            for bits, grid in grids[name].items():
                x = inputs[name].detach()
                length = (grid.nearest(x) - x).flatten(1).double().square().sum(1)
                found[name][bits].append(InputCurvature(value.abs() * length, residual * length))
        total += len(images)
    if not total:
        raise SensitivityError("there are no samples to differentiate the loss on; give at least one")
    return {name: {bits: _joined(parts) for bits, parts in row.items()} for name, row in found.items()}


def _joined(parts: list[InputCurvature]) -> InputCurvature:
    return InputCurvature(torch.cat([part.bounds for part in parts]), torch.cat([part.residuals for part in parts]))


def _top(
    name: str, value: Tensor, slope: Tensor, seed: int, target_error: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Each sample's top eigenvalue and residual, float64 [N] both."""
    generator = torch.Generator().manual_seed(seed)
    vector = _units(torch.randn(value.shape, generator=generator))
    eigenvalue = residual = torch.zeros(len(value), dtype=torch.float64)
    for _ in range(max_iterations):
        (image,) = products([name], [value], [slope], [vector])
        eigenvalue = _dot(image, vector)
        residual = _dot(image, image).sub(eigenvalue.square()).clamp(min=0).sqrt()  # |H v|^2 - lambda^2, as |v| = 1
        if float(residual.sum()) <= target_error * float(eigenvalue.abs().sum()):
            break
        vector = _units(image)
    return eigenvalue, residual


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sample by sample, float64 [N]."""
    return (a.double() * b.double()).flatten(1).sum(1)


def _units(vectors: Tensor) -> Tensor:
    """Each sample's vector at length 1; one of zeros stays."""
    length = _dot(vectors, vectors).sqrt()
    scale = torch.where(length > 0, 1 / length, 0.0).to(vectors.dtype)
    return vectors * scale.reshape(-1, *(1,) * (vectors.dim() - 1))
