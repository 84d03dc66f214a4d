"""Hutchinson's estimate of the Hessian's trace, layer by layer, all layers in one double backward.

For ``z`` of independent signs, ``E[z^T H z] = tr(H)``. Drawing one ``z`` for all layers at once and keeping each
layer's part ``z_i . (H z)_i`` estimates the trace of that layer's diagonal block: the cross terms ``z_i^T H_ij z_j``
have mean zero, since z_i and z_j are independent. They do add variance, so the estimate is iterated until its
standard error is small enough, and that error is reported.

The loss is a mean over samples that come in batches, so ``H = sum_b w_b H_b`` with ``w_b`` a batch's share of the
samples. One probe is one ``z`` for every batch, each its own: with ``m_b`` the mean and ``s_b^2`` the variance of
``z^T H_b z`` over R probes,

    trace = sum_b w_b m_b        standard error^2 = sum_b w_b^2 s_b^2 / R

The trace is unbiased because every m_b is. The error holds the noise of the signs alone: batches of unlike curvature
do not add to it, as each of them is in every probe. Own signs for each batch cost what common ones do, and their
noise averages out over the batches.

Source: HAWQ-V2 (arXiv 1911.03852), section 3.2; Hutchinson 1990; Avron and Toledo 2011.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq_tvm.core.errors import SensitivityError

Loss = Callable[[Mapping[str, Tensor]], Tensor]
"""The scalar loss of one batch as a function of the layers' weights."""


@dataclass(frozen=True)
class TraceEstimate:
    """The trace of one layer's Hessian block.

    Attributes:
        trace: its estimate; may come out slightly negative where the true trace is near 0.
        standard_error: of the estimate.
        probes: how many vectors each batch was probed with.
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
        """Standard error per trace; 0 of a dead layer, whose every probe is 0."""
        if self.standard_error == 0:
            return 0.0
        return self.standard_error / abs(self.trace) if self.trace else float("inf")


def hutchinson_traces(
    losses: Sequence[Loss],
    weights: Mapping[str, Tensor],
    *,
    samples: Sequence[int] | None = None,
    target_error: float = 0.1,
    min_probes: int = 8,
    max_probes: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, TraceEstimate]:
    """Estimate the trace of every layer's Hessian block of the mean loss over all samples.

    Args:
        losses: one function a batch, the mean loss over its samples; each is differentiated twice. The batches are
            visited in rounds, and a batch's graph is kept only while its own probes run.
        weights: float32 leaf tensors by layer name.
        samples: how many samples each batch has; equally many if not given.
        target_error: stop when every layer's standard error is under this share of its trace.
        min_probes: of one batch, never stop before so many; of more, never before the error has as many degrees of
            freedom, which is sooner. Stopping on an error this young makes it a little too small.
        max_probes: always stop after so many probes, each of one vector for every batch; 2 or more.
        seed: of the signs.
        progress: called with the number of probes done.

    Returns:
        One estimate a layer.

    Raises:
        SensitivityError: no batch or an empty one; fewer than 2 probes, which show no error; an operator has no second
            derivative, by name; or the result is not finite, by layer.

    >>> x = torch.tensor([3.0, 5.0])
    >>> loss = lambda w: 0.5 * (w["layer"] ** 2 * x).sum()   # Hessian diag(3, 5), found exactly by every probe
    >>> hutchinson_traces([loss], {"layer": torch.ones(2)})["layer"].trace
    8.0
    """
    shares = _shares(len(losses), samples)
    if max_probes < 2:
        raise SensitivityError(f"max_probes is {max_probes}; give 2 or more, as one probe shows no standard error")
    generator = torch.Generator().manual_seed(seed)
    names = list(weights)
    leaves = [weights[name].detach().clone().requires_grad_() for name in names]
    per_visit = max(2, 1 + math.ceil((min_probes - 1) / len(losses)))
    probed = torch.zeros(0, len(losses), len(names), dtype=torch.float64)
    while len(probed) < max_probes:
        visit = torch.zeros(min(per_visit, max_probes - len(probed)), len(losses), len(names), dtype=torch.float64)
        for batch, loss in enumerate(losses):
            for index, parts in enumerate(_probes(loss, names, leaves, len(visit), generator)):
                visit[index, batch] = parts
                if progress is not None:
                    progress(len(probed) + (batch * len(visit) + index + 1) // len(losses))
        probed = torch.cat([probed, visit])
        trace, error = _estimate(probed, shares)
        if bool((error <= target_error * trace.abs()).all()):
            break
    return {
        name: TraceEstimate(float(trace[i]), float(error[i]), len(probed), leaves[i].numel())
        for i, name in enumerate(names)
    }


def _shares(batches: int, samples: Sequence[int] | None) -> Tensor:
    """Each batch's share of all samples, float64 [batches]."""
    counts = [1] * batches if samples is None else list(samples)
    if not counts or len(counts) != batches or min(counts) < 1:
        raise SensitivityError(
            f"the Hessian's loss has {batches} batches of {counts} samples; give at least one sample"
        )
    return torch.tensor(counts, dtype=torch.float64) / sum(counts)


def _estimate(probed: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Traces and their standard errors, [layers] each, from ``z^T H_b z`` as float64 [probes, batches, layers]."""
    trace = shares @ probed.mean(0)
    error = torch.sqrt(shares.square() @ probed.var(0, correction=1) / len(probed))
    return trace, error


def _probes(
    loss: Loss, names: Sequence[str], leaves: Sequence[Tensor], count: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Probe one batch; its graph goes with this generator, before the next batch's is made."""
    gradients = _gradients(loss, names, leaves)
    for _ in range(count):
        yield _probe(names, leaves, gradients, generator)


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
