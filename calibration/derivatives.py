"""Second derivatives of a loss with respect to some leaves, block by block, and what to say where there are none.

For blocks w_1, w_2, ... of the leaves, ``sum_i g_i . v_i`` differentiated once more by w_j gives ``(H v)_j``: a double
backward, which never forms H. The gradients' graph is made once and serves any number of products.

Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hawq_tvm.core.errors import SensitivityError


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients that can be differentiated once more.

    Args:
        loss: a scalar.
        leaves: what it is differentiated by.

    Raises:
        SensitivityError: an operator has no second derivative, by name.
    """
    try:
        found = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    except RuntimeError as error:
        raise _no_derivative(error) from error
    # A backward marked @once_differentiable ends in an error node, which autograd would walk around and call zero.
    if any("Error" in node.name() for gradient in found for node in _nodes(gradient)):
        custom = [node.name() for node in _nodes(loss) if isinstance(node, torch.autograd.function.BackwardCFunction)]
        raise _lacking(", ".join(sorted({name.removesuffix("Backward") for name in custom})) or "a custom operator")
    return found


def products(
    names: Sequence[str], leaves: Sequence[Tensor], found: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """``(H v)_i`` of every block i of the Hessian that these leaves span.

    Args:
        names: of the blocks' layers, for messages.
        leaves: the blocks.
        found: their `gradients`.
        vectors: v, in the leaves' shapes.

    Raises:
        SensitivityError: an operator has no second derivative, or a product is not finite, by layer.
    """
    curved = [(gradient, vector) for gradient, vector in zip(found, vectors, strict=True) if gradient.requires_grad]
    if not curved:  # the loss is linear in all of them
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    outputs, weights = zip(*curved, strict=True)
    try:
        result = torch.autograd.grad(
            outputs, leaves, grad_outputs=weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        raise _no_derivative(error) from error
    for name, product in zip(names, result, strict=True):
        if not torch.isfinite(product).all():
            raise SensitivityError(f"the Hessian of layer '{name}' is not finite; check weights, labels and samples")
    return result


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


def _no_derivative(error: RuntimeError) -> SensitivityError:
    """Name the operator that autograd cannot differentiate twice."""
    match = re.search(r"derivative for '?(?:aten::)?(\w+?)'? is not implemented", str(error))
    if match is None:
        return SensitivityError(f"the Hessian cannot be computed: {str(error).splitlines()[0]}")
    return _lacking(match[1])


def _lacking(operator: str) -> SensitivityError:
    return SensitivityError(
        f"the Hessian needs second derivatives, and operator '{operator}' has none; "
        "replace it by operators of PyTorch that have, or take a metric that needs none, such as kl"
    )
