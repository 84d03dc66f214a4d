"""Hutchinson's estimate of the Hessian's trace, layer by layer, all layers in one double backward.

For ``z`` of independent signs, ``E[z^T H z] = tr(H)``. Drawing one ``z`` for all layers at once and keeping each
layer's part ``z_i . (H z)_i`` estimates the trace of that layer's diagonal block: the cross terms ``z_i^T H_ij z_j``
have mean zero, since z_i and z_j are independent. They do add variance, so the estimate is iterated until its
standard error is small enough, and that error is reported.

Source: HAWQ-V2 (arXiv 1911.03852), section 3.2; Hutchinson 1990; Avron and Toledo 2011.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq_tvm.errors import SensitivityError

Loss = Callable[[Mapping[str, Tensor]], Tensor]
"""The scalar loss of one batch as a function of the layers' weights."""


@dataclass(frozen=True)
class TraceEstimate:
    """The trace of one layer's Hessian block.

    Attributes:
        trace: its estimate; may come out slightly negative where the true trace is near 0.
        standard_error: of the estimate.
        probes: how many vectors it rests on.
        parameters: the block's size.
    """

    trace: float
    standard_error: float
    probes: int
    parameters: int

    @property
    def mean(self) -> float:
        """Trace per parameter, what HAWQ-V2 and V3 call the average trace."""
        return self.trace / self.parameters

    @property
    def relative_error(self) -> float:
        return self.standard_error / abs(self.trace) if self.trace else float("inf")


def hutchinson_traces(
    losses: Sequence[Loss],
    weights: Mapping[str, Tensor],
    *,
    target_error: float = 0.1,
    min_probes: int = 8,
    max_probes: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, TraceEstimate]:
    """Estimate the trace of every layer's Hessian block of the mean loss.

    Args:
        losses: one function a batch; each is differentiated twice. Probes are dealt to the batches in turn, and each
            batch's graph is kept only while its own probes run.
        weights: float32 leaf tensors by layer name.
        target_error: stop when every layer's standard error is under this share of its trace.
        min_probes: never stop before so many probes.
        max_probes: always stop after so many.
        seed: of the signs.
        progress: called with the number of probes done.

    Returns:
        One estimate a layer.

    Raises:
        SensitivityError: an operator has no second derivative, by name; or the result is not finite, by layer.

    >>> x = torch.tensor([3.0, 5.0])
    >>> loss = lambda w: 0.5 * (w["layer"] ** 2 * x).sum()   # Hessian diag(3, 5), found exactly by every probe
    >>> hutchinson_traces([loss], {"layer": torch.ones(2)})["layer"].trace
    8.0
    """
    generator = torch.Generator().manual_seed(seed)
    names = list(weights)
    leaves = [weights[name].detach().clone().requires_grad_() for name in names]
    statistics = _Welford(len(names))
    per_visit = max(1, -(-min_probes // len(losses)))
    while statistics.count < max_probes:
        for loss in losses:
            gradients = _gradients(loss, names, leaves)
            for _ in range(min(per_visit, max_probes - statistics.count)):
                statistics.add(_probe(names, leaves, gradients, generator))
                if progress is not None:
                    progress(statistics.count)
                if len(losses) == 1 and _converged(statistics, target_error, min_probes):
                    break
        if _converged(statistics, target_error, min_probes) or not losses:
            break
    error = statistics.standard_error()
    return {
        name: TraceEstimate(float(statistics.mean[i]), float(error[i]), statistics.count, leaves[i].numel())
        for i, name in enumerate(names)
    }


class _Welford:
    """Running mean and variance of vectors, in float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        self.count += 1
        delta = values - self.mean
        self.mean += delta / self.count
        self._squares += delta * (values - self.mean)

    def standard_error(self) -> Tensor:
        if self.count < 2:
            return torch.full_like(self.mean, float("inf"))
        return torch.sqrt(self._squares / (self.count - 1) / self.count)


def _converged(statistics: _Welford, target: float, min_probes: int) -> bool:
    if statistics.count < min_probes:
        return False
    return bool((statistics.standard_error() <= target * statistics.mean.abs()).all())


def _gradients(loss: Loss, names: Sequence[str], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    value = loss(dict(zip(names, leaves, strict=True)))
    try:
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
    except RuntimeError as error:
        raise _no_derivative(error) from error
    # A backward marked @once_differentiable ends in an error node, which autograd would walk around and call zero.
    if any("Error" in node.name() for gradient in gradients for node in _nodes(gradient)):
        custom = [node.name() for node in _nodes(value) if isinstance(node, torch.autograd.function.BackwardCFunction)]
        raise _lacking(", ".join(sorted({name.removesuffix("Backward") for name in custom})) or "a custom operator")
    return gradients


def _nodes(value: Tensor) -> Iterator[torch.autograd.graph.Node]:
    """Every node of the autograd graph that ends in `value`."""
    seen: set[torch.autograd.graph.Node] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
            yield node


def _probe(
    names: Sequence[str], leaves: Sequence[Tensor], gradients: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """One joint probe: ``z_i . (H z)_i`` for every layer i, float64 [layers]."""
    signs = [torch.randint(0, 2, leaf.shape, generator=generator).to(leaf.dtype) * 2 - 1 for leaf in leaves]
    try:
        products = torch.autograd.grad(
            gradients, leaves, grad_outputs=signs, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        raise _no_derivative(error) from error
    parts = torch.stack([(z.double() * hz.double()).sum() for z, hz in zip(signs, products, strict=True)])
    if not torch.isfinite(parts).all():
        broken = names[int((~torch.isfinite(parts)).nonzero()[0])]
        raise SensitivityError(f"the Hessian of layer '{broken}' is not finite; check weights, labels and samples")
    return parts


def _no_derivative(error: RuntimeError) -> SensitivityError:
    """Name the operator that autograd cannot differentiate twice."""
    match = re.search(r"derivative for '?(?:aten::)?(\w+?)'? is not implemented", str(error))
    if match is None:
        return SensitivityError(f"the Hessian cannot be computed: {str(error).splitlines()[0]}")
    return _lacking(match[1])


def _lacking(operator: str) -> SensitivityError:
    return SensitivityError(
        f"the Hessian needs second derivatives, and operator '{operator}' has none; "
        "replace it by operators of PyTorch that have"
    )
