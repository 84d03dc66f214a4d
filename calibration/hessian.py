"""Hutchinson's estimate of the Hessian's trace, layer by layer, many layers in one double backward.

For ``z`` of independent signs, ``E[z^T H z] = tr(H)``. Drawing one ``z`` for several layers at once and keeping each
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

Probes go on for the layers alone that are still open. The others leave the double backward, which takes less time then,
and leave less noise to those that stay. A layer is settled where its error is a small enough share of its trace, or
where no other layer's place in the order of sensitivity could be its own.

Source: HAWQ-V2 (arXiv 1911.03852), section 3.2; Hutchinson 1990; Avron and Toledo 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hawq_tvm.calibration.derivatives import gradients, products
from hawq_tvm.core.errors import SensitivityError
from hawq_tvm.core.hashing import own_seed

Loss = Callable[[Mapping[str, Tensor]], Tensor]
"""The scalar loss of one batch as a function of the layers' weights."""

_APART = 2.0  # standard errors between an estimate and each end of the interval that it is taken to lie in


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
    order: Mapping[str, float] | None = None,
    seed: int = 0,
    done: Tensor | None = None,
    keep: Callable[[Tensor], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, TraceEstimate]:
    """Estimate the trace of every layer's Hessian block of the mean loss over all samples.

    Args:
        losses: one function a batch, the mean loss over its samples; each is differentiated twice. The batches are
            visited in rounds, and a batch's graph is kept only while its own probes run.
        weights: float32 leaf tensors by layer name.
        samples: how many samples each batch has; equally many if not given.
        target_error: a layer is settled when its standard error is under this share of its trace.
        min_probes: of one batch, never stop before so many; of more, never before the error has as many degrees of
            freedom, which is sooner. Stopping on an error this young makes it a little too small.
        max_probes: always stop after so many probes, each of one vector for every batch; 2 or more.
        order: what a unit of each layer's trace weighs in the order that decides, so that a layer whose place in it is
            sure is settled too. None settles layers by their errors alone.
        seed: of the signs, which are those of the probe, the batch and the layer whatever else is probed.
        done: what an earlier call with the same arguments kept, to go on from there to the same result.
        keep: is given all values so far after every round, float64 [probes, batches, layers]: ``z_i . (H_b z)_i``, and
            NaN where a layer was not probed any more.
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
    shares = shares_of(len(losses), samples)
    if max_probes < 2:
        raise SensitivityError(f"max_probes is {max_probes}; give 2 or more, as one probe shows no standard error")
    names = list(weights)
    leaves = [weights[name].detach().clone().requires_grad_() for name in names]
    scale = None if order is None else torch.tensor([order[name] for name in names], dtype=torch.float64)
    per_visit = max(2, 1 + math.ceil((min_probes - 1) / len(losses)))
    probed = torch.zeros(0, len(losses), len(names), dtype=torch.float64) if done is None else done
    while len(probed) < max_probes:
        layers = range(len(names)) if not len(probed) else _open(*_estimate(probed, shares), target_error, scale)
        if not layers:
            break
        visit = torch.full((min(per_visit, max_probes - len(probed)), len(losses), len(names)), torch.nan).double()
        for batch, loss in enumerate(losses):
            found = gradients(loss(dict(zip(names, leaves, strict=True))), [leaves[layer] for layer in layers])
            for index in range(len(visit)):
                key = (seed, len(probed) + index, batch)
                visit[index, batch, list(layers)] = _probe(key, layers, names, leaves, found)
                if progress is not None:
                    progress(len(probed) + (batch * len(visit) + index + 1) // len(losses))
            del found  # this batch's graph goes before the next one's is made
        probed = torch.cat([probed, visit])
        if keep is not None:
            keep(probed)
    trace, error = _estimate(probed, shares)
    probes = (~probed[:, 0].isnan()).sum(0)
    return {
        name: TraceEstimate(float(trace[i]), float(error[i]), int(probes[i]), leaves[i].numel())
        for i, name in enumerate(names)
    }


def shares_of(batches: int, samples: Sequence[int] | None) -> Tensor:
    """Each batch's share of all samples, float64 [batches].

    Raises:
        SensitivityError: there is no batch, or an empty one.
    """
    counts = [1] * batches if samples is None else list(samples)
    if not counts or len(counts) != batches or min(counts) < 1:
        raise SensitivityError(
            f"the Hessian's loss has {batches} batches of {counts} samples; give at least one sample"
        )
    return torch.tensor(counts, dtype=torch.float64) / sum(counts)


def _estimate(probed: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Traces and their standard errors, [layers] each, from ``z^T H_b z`` as float64 [probes, batches, layers]."""
    there = ~probed.isnan()
    values, count = probed.nan_to_num(0.0), there.sum(0)
    mean = values.sum(0) / count
    variance = ((values - mean).square() * there).sum(0) / (count - 1)
    return shares @ mean, torch.sqrt(shares.square() @ (variance / count))


def _open(trace: Tensor, error: Tensor, target: float, scale: Tensor | None) -> list[int]:
    """The layers that are worth another probe.

    Args:
        trace: float64 [layers].
        error: of them, float64 [layers].
        target: share of its trace that an error may be.
        scale: what a unit of each trace weighs in the order of layers, float64 [layers]; None where that is not known.
    """
    unsure = error > target * trace.abs()
    if scale is not None:
        low, high = (trace - _APART * error) * scale, (trace + _APART * error) * scale
        meets = (low[:, None] <= high[None, :]) & (low[None, :] <= high[:, None])
        unsure &= meets.sum(1) > 1  # each meets itself
    return [int(layer) for layer in unsure.nonzero()]


def _probe(
    key: tuple[int, ...], layers: Sequence[int], names: Sequence[str], leaves: Sequence[Tensor], found: Sequence[Tensor]
) -> Tensor:
    """One joint probe: ``z_i . (H z)_i`` for every layer i of `layers`, float64 [len(layers)]."""
    signs = [_signs(leaves[layer], own_seed(*key, layer)) for layer in layers]
    result = products([names[layer] for layer in layers], [leaves[layer] for layer in layers], found, signs)
    return torch.stack([(z.double() * hz.double()).sum() for z, hz in zip(signs, result, strict=True)])


def _signs(leaf: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, leaf.shape, generator=generator).to(leaf.dtype) * 2 - 1
