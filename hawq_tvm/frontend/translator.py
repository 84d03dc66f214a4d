"""What is known while an exported graph is walked: values, the nodes made so far, and how an operator is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hawq_tvm.core.errors import UnsupportedOperator
from hawq_tvm.core.float_ir import FloatNode
from hawq_tvm.core.ir import Shape

Value = Any  # the name of an activation (`Activation`), a constant `Tensor`, a number, or `SYMBOLIC`
SYMBOLIC = object()
"""A size that depends on the batch: shapes are read from the exporter's metadata instead."""

_ANYTHING_ELSE = (
    "rewrite it with convolutions, linear layers, ReLU, sums, concatenation and pooling, or keep it outside"
)
_GATE = "a product of two activations (a gate, squeeze-and-excitation) needs a network variant without it"
_SMOOTH = "replace it by nn.ReLU, nn.ReLU6 or nn.Hardtanh and fine-tune"
_LOGITS = "return the logits instead: the largest one is the same, and it can be applied outside"
ZEROS = (
    "only activations can be concatenated, and zeros made of one (x * 0, torch.zeros_like(x)); "
    "F.pad(x, (0, 0, 0, 0, 0, k)) adds k channels of zeros"
)
HINTS: dict[str, str] = {
    **dict.fromkeys(
        ("silu", "gelu", "hardswish", "sigmoid", "hardsigmoid", "tanh", "elu", "mish", "softplus"), _SMOOTH
    ),
    **dict.fromkeys(("leaky_relu", "prelu", "threshold", "selu"), _SMOOTH),
    **dict.fromkeys(("softmax", "log_softmax", "argmax", "_softmax", "_log_softmax", "topk"), _LOGITS),
    "mul": _GATE,
    "layer_norm": "replace it by nn.BatchNorm2d, which folds into the convolution before it",
    "group_norm": "replace it by nn.BatchNorm2d, which folds into the convolution before it",
    "instance_norm": "replace it by nn.BatchNorm2d, which folds into the convolution before it",
    "batch_norm": "a batch norm on a vector folds only into a linear layer just before it that nothing else reads",
    **dict.fromkeys(
        ("convolution", "conv_transpose2d"),
        "replace a transposed convolution by pooling less, or keep the upsampling part outside",
    ),
    "pad": "only a zero pad is known, of height and width before a convolution or pooling layer, or of channels",
    "slice": "only every k-th row and column from the first one on is known, as x[:, :, ::2, ::2]",
    "new_zeros": ZEROS,
    **dict.fromkeys(("split", "chunk"), "write parts of the channels as convolutions of their own"),
    "conv1d": "write it as nn.Conv2d with a height of 1",
    "sub": "write x - y as x + w(y) with the sign in the weights of the layer before",
}
"""What could replace an operator that has no integer form."""


@dataclass(frozen=True)
class Activation:
    """A value that depends on the input.

    Attributes:
        name: of the node that makes it.
        shape: of one sample.
        flat: whether the node makes a vector, of which the network still keeps axes of size 1: half a flatten.
    """

    name: str
    shape: Shape
    flat: bool = False


@dataclass
class Translator:
    """Collects float-graph nodes while the exported graph is walked."""

    nodes: list[FloatNode] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    current: fx.Node | None = None
    weight_name: str = ""
    batch: str = ""  # the exporter's symbol for the batch size

    def emit(
        self, kind: str, inputs: Sequence[Activation], shape: Shape, *, suffix: str = "", **fields: Any
    ) -> Activation:
        """Append a node and return its value; the name is the module path, made unique."""
        name = self._unique(self._path(kind) + suffix)
        self.nodes.append(FloatNode(name, kind, tuple(x.name for x in inputs), shape, **fields))
        return Activation(name, shape)

    def is_zero(self, value: Activation) -> bool:
        """Whether a value was made zero in all channels, as ``x * 0`` is."""
        node = next((node for node in self.nodes if node.name == value.name), None)
        return node is not None and node.kind == "affine" and not (np.any(node.weight) or np.any(node.bias))

    def refuse(self, hint: str | None = None) -> UnsupportedOperator:
        """The error for the operator at hand."""
        assert self.current is not None
        target = str(self.current.target)
        operator = ".".join(target.split(".")[:2])
        short = operator.removeprefix("aten.").rstrip("_")
        return UnsupportedOperator(operator, self._module()[0], hint or HINTS.get(short, _ANYTHING_ELSE))

    @property
    def output_shape(self) -> Shape:
        """One sample's shape of the exported node's first result."""
        return self._sample_shape(self._first_result())

    def require_result(self, value: Activation) -> None:
        """Refuse the operator at hand unless its result is what was made of it: float32, of one shape a sample.

        Raises:
            UnsupportedOperator: it has another type or shape, or moves the batch axis.
        """
        result = self._first_result()
        if result.dtype != torch.float32:
            raise self.refuse(f"its result is {result.dtype}; compute in torch.float32 throughout")
        shape = self._sample_shape(result)
        if value.shape != shape:
            raise self.refuse(f"it makes {shape} of a sample where {value.shape} is known; flatten to [N, features]")

    def _first_result(self) -> Tensor:
        assert self.current is not None
        value = self.current.meta["val"]
        first: Tensor = value[0] if isinstance(value, tuple | list) else value
        return first

    def _sample_shape(self, value: Tensor) -> Shape:
        """Sizes after the batch axis, which must be the first and nowhere else."""
        batch, *sizes = value.shape if value.ndim else (0,)
        if str(batch) != self.batch or any(isinstance(size, torch.SymInt) for size in sizes):
            raise self.refuse(f"its result has the shape {list(value.shape)}; keep the batch, {self.batch}, first")
        return tuple(sizes)

    def _module(self) -> tuple[str, str]:
        """Path and type of the innermost module that the operator came from."""
        assert self.current is not None
        stack = list((self.current.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        if "from_metadata_hook" in path:
            return "", ""
        return re.sub(r"@\d+", "", path), kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"

    def _path(self, kind: str) -> str:
        if self.weight_name:
            return self.weight_name
        path, module_type = self._module()
        is_layer = module_type.startswith("torch.nn.modules.") and ".container." not in module_type
        if path and is_layer:
            return path
        return f"{path}.{kind}" if path else kind

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self.taken:
            count += 1
            candidate = f"{name}#{count}"
        self.taken.add(candidate)
        return candidate
