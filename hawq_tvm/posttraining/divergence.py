"""How far a quantised network's result is from the float network's, without labels.

KL(p || q) = sum_c p_c (log p_c - log q_c)        p, q = softmax of the float and of the quantised result
"""

from __future__ import annotations

from torch import Tensor


def output_divergence(expected: Tensor, got: Tensor) -> Tensor:
    """How far outputs are apart, sample by sample.

    Kullback-Leibler divergence of the classes' probabilities, a mean over positions where there are some; the squared
    difference where there is one class, whose probability would always be 1.

    Args:
        expected: float32 [N, C, ...], logits of the float network.
        got: of the same shape.

    Returns:
        float64 [N], at least 0.

    >>> import torch
    >>> output_divergence(torch.zeros(2, 1), torch.full((2, 1), 3.0)).tolist()
    [9.0, 9.0]
    """
    expected, got = expected.double(), got.double()
    if expected.shape[1] == 1:
        return (got - expected).square().flatten(1).mean(1)
    p, q = expected.log_softmax(1), got.log_softmax(1)
    divergence = (p.exp() * (p - q)).sum(1, keepdim=True).flatten(1).mean(1)
    return divergence.clamp(min=0)  # sums of rounded terms may fall below
