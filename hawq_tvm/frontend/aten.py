"""What capture understands: one function for each ATen operator, from exported node to float-graph node.

A function takes the `Translator` and the operator's arguments by name, and returns the value that the exported node
becomes: the name of an activation, a constant tensor, or a plain number. Anything absent from `ATEN` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from hawq_tvm.core.errors import UnsupportedOperator
from hawq_tvm.core.float_ir import Clip, FloatNode
from hawq_tvm.core.ir import Shape, Window

Value = Any  # the name of an activation (`Activation`), a constant `Tensor`, a number, or `SYMBOLIC`
SYMBOLIC = object()
"""A size that depends on the batch: shapes are read from the exporter's metadata instead."""

_ANYTHING_ELSE = (
    "rewrite it with convolutions, linear layers, ReLU, sums, concatenation and pooling, or keep it outside"
)
_GATE = "a product of two activations (a gate, squeeze-and-excitation) needs a network variant without it"
_SMOOTH = "replace it by nn.ReLU, nn.ReLU6 or nn.Hardtanh and fine-tune"
_LOGITS = "return the logits instead: the largest one is the same, and it can be applied outside"
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
    "pad": "only a constant zero pad of height and width before a convolution or pooling layer folds in",
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


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to(torch.float32).contiguous().cpu().numpy().copy()


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _symmetric(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    height, width = _pair(padding)
    return height, width, height, width


Arguments = dict[str, Any]
Handler = Callable[[Translator, Arguments], Value]


def _conv2d(t: Translator, a: Arguments) -> Activation:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if not isinstance(weight, Tensor) or not isinstance(x, Activation) or len(x.shape) != 3:
        raise t.refuse("a convolution needs constant weights and a 4-d activation")
    if a.get("transposed"):
        raise t.refuse()
    kernel = _pair(weight.shape[2:])
    strides, dilations, padding = _pair(a["stride"]), _pair(a["dilation"]), a["padding"]
    if padding == "valid":
        pads = (0, 0, 0, 0)
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        top, left = total[0] // 2, total[1] // 2
        pads = (top, left, total[0] - top, total[1] - left)
    else:
        pads = _symmetric(padding)
    window = Window(kernel, strides, pads, dilations)
    offset = _array(bias) if bias is not None else np.zeros(len(weight), np.float32)
    return t.emit(
        "conv2d", [x], t.output_shape, weight=_array(weight), bias=offset, window=window, groups=int(a["groups"])
    )


def _linear(t: Translator, a: Arguments) -> Activation:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not isinstance(x, Activation) or len(x.shape) != 1:
        raise t.refuse(
            "a linear layer needs constant weights [out, in] and an input of shape [N, features]; flatten before it"
        )
    offset = _array(bias) if bias is not None else np.zeros(len(weight), np.float32)
    return t.emit("linear", [x], t.output_shape, weight=_array(weight), bias=offset)


def _affine(t: Translator, x: Activation, factor: Any, offset: Any) -> Activation:
    """Compute x * factor + offset, both numbers or constants that broadcast along channels alone."""
    channels = x.shape[0]
    vectors = []
    for constant in (factor, offset):
        array = np.asarray(_array(constant) if isinstance(constant, Tensor) else constant, np.float32)
        full = (
            array.reshape((1,) * (len(x.shape) + 1 - array.ndim) + array.shape)
            if array.ndim <= len(x.shape) + 1
            else array
        )
        if full.ndim != len(x.shape) + 1 or full.shape[1] not in (1, channels) or full.size != full.shape[1]:
            raise t.refuse("a constant may differ along channels alone")
        vectors.append(np.broadcast_to(full.reshape(-1), (channels,)).copy())
    return t.emit("affine", [x], x.shape, weight=vectors[0], bias=vectors[1])


def _batch_norm(t: Translator, a: Arguments) -> Activation:
    mean, variance = a["running_mean"], a["running_var"]
    if mean is None or variance is None or a.get("training"):
        raise t.refuse("a batch norm needs running statistics; call model.eval() and train with track_running_stats")
    scale = a["weight"].double() if a["weight"] is not None else torch.ones_like(mean, dtype=torch.float64)
    shift = a["bias"].double() if a["bias"] is not None else torch.zeros_like(mean, dtype=torch.float64)
    factor = scale / torch.sqrt(variance.double() + float(a["eps"]))
    offset = shift - mean.double() * factor
    spread = (-1,) + (1,) * (len(a["input"].shape) - 1)
    return _affine(t, a["input"], factor.reshape(spread), offset.reshape(spread))


def _clip(t: Translator, a: Arguments, lo: float | None, hi: float | None) -> Activation:
    x = a["self"]
    top = np.inf if hi is None else hi
    bounds = Clip(-np.inf if lo is None else min(lo, top), top)  # PyTorch lets the upper bound win
    return t.emit("clip", [x], x.shape, clip=bounds)


def _clamp(t: Translator, a: Arguments) -> Activation:
    lo, hi = a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))
    if isinstance(lo, Tensor | Activation) or isinstance(hi, Tensor | Activation):
        raise t.refuse("clamp with plain numbers as bounds")
    return _clip(t, a, None if lo is None else float(lo), None if hi is None else float(hi))


def _add(t: Translator, a: Arguments) -> Activation:
    x, y, alpha = a["self"], a["other"], a.get("alpha", 1)
    if not isinstance(y, Activation):
        return _affine(t, x, 1.0, y * alpha)
    if not isinstance(x, Activation):
        return _affine(t, y, float(alpha), x)
    if alpha != 1 or x.shape != y.shape:
        raise t.refuse("a sum takes two activations of one shape, unscaled")
    return t.emit("add", [x, y], x.shape)


def _sub(t: Translator, a: Arguments) -> Activation:
    x, y, alpha = a["self"], a["other"], a.get("alpha", 1)
    if isinstance(x, Activation) and not isinstance(y, Activation):
        return _affine(t, x, 1.0, -alpha * y)
    if isinstance(y, Activation) and not isinstance(x, Activation):
        return _affine(t, y, -float(alpha), x)
    raise t.refuse()


def _rsub(t: Translator, a: Arguments) -> Activation:
    return _sub(t, {"self": a["other"], "other": a["self"], "alpha": a.get("alpha", 1)})


def _mul(t: Translator, a: Arguments) -> Activation:
    x, y = a["self"], a["other"]
    if not isinstance(x, Activation):
        x, y = y, x
    if isinstance(y, Activation):
        raise t.refuse()
    return _affine(t, x, y, 0.0)


def _div(t: Translator, a: Arguments) -> Activation:
    x, y = a["self"], a["other"]
    if not isinstance(x, Activation) or isinstance(y, Activation) or a.get("rounding_mode") is not None:
        raise t.refuse("a quotient needs a constant divisor")
    return _affine(t, x, torch.as_tensor(y, dtype=torch.float64).reciprocal(), 0.0)


def _neg(t: Translator, a: Arguments) -> Activation:
    return _affine(t, a["self"], -1.0, 0.0)


def _with_ceil(window: Window, size: Shape, output: Shape) -> Window:
    """The window with as much more padding below and right as `output` needs (ceil_mode)."""
    top, left, bottom, right = window.pads
    more = []
    for axis, before in enumerate((top + bottom, left + right)):
        reach = window.dilations[axis] * (window.kernel[axis] - 1) + 1
        more.append(max(0, (output[axis] - 1) * window.strides[axis] + reach - size[axis] - before))
    return Window(window.kernel, window.strides, (top, left, bottom + more[0], right + more[1]), window.dilations)


def _max_pool2d(t: Translator, a: Arguments) -> Activation:
    x = a["self"]
    kernel = _pair(a["kernel_size"])
    window = Window(kernel, _pair(a["stride"] or kernel), _symmetric(a["padding"]), _pair(a["dilation"]))
    shape = t.output_shape
    return t.emit("max_pool2d", [x], shape, window=_with_ceil(window, x.shape[1:], shape[1:]))


def _avg_pool2d(t: Translator, a: Arguments) -> Activation:
    x = a["self"]
    kernel = _pair(a["kernel_size"])
    window = Window(kernel, _pair(a["stride"] or kernel), _symmetric(a["padding"]))
    shape = t.output_shape
    counts = np.outer(
        *(
            _window_counts(shape[1 + axis], x.shape[1 + axis], window, axis, bool(a["count_include_pad"]))
            for axis in (0, 1)
        )
    )
    if a["divisor_override"]:
        if a["divisor_override"] < 0:
            raise t.refuse("a pool divides by a positive number")
        counts = np.full_like(counts, float(a["divisor_override"]))
    counts = counts.astype(np.float32)
    return t.emit("avg_pool2d", [x], shape, window=_with_ceil(window, x.shape[1:], shape[1:]), counts=counts)


def _window_counts(outputs: int, size: int, window: Window, axis: int, include_pad: bool) -> NDArray[np.float64]:
    """How many elements along one axis each window is divided by, as PyTorch counts them."""
    pad, kernel = window.pads[axis], window.kernel[axis]
    starts = np.arange(outputs) * window.strides[axis] - pad
    ends = np.minimum(starts + kernel, size + pad)
    if not include_pad:
        starts, ends = np.maximum(starts, 0), np.minimum(ends, size)
    return (ends - starts).astype(np.float64)


def _adaptive_window(t: Translator, x: Activation, output: tuple[int, int]) -> Window | None:
    """The fixed window of an adaptive pool; None where it changes nothing."""
    sizes = x.shape[1:]
    if sizes == output:
        return None
    if any(size % out for size, out in zip(sizes, output, strict=True)):
        raise t.refuse(f"adaptive pooling from {sizes} to {output} needs windows of several sizes; pool to a divisor")
    kernel = (sizes[0] // output[0], sizes[1] // output[1])
    return Window(kernel, kernel)


def _adaptive_avg_pool2d(t: Translator, a: Arguments) -> Activation:
    x, output = a["self"], _pair(a["output_size"])
    if output == (1, 1):
        return t.emit("global_avg_pool2d", [x], (x.shape[0], 1, 1))
    window = _adaptive_window(t, x, output)
    if window is None:
        return _identity(t, a)
    counts = np.full(output, float(np.prod(window.kernel)), np.float32)
    return t.emit("avg_pool2d", [x], (x.shape[0], *output), window=window, counts=counts)


def _adaptive_max_pool2d(t: Translator, a: Arguments) -> tuple[Activation, ...]:
    x, output = a["self"], _pair(a["output_size"])
    window = _adaptive_window(t, x, output)
    return (x if window is None else t.emit("max_pool2d", [x], (x.shape[0], *output), window=window),)


def _mean(t: Translator, a: Arguments) -> Activation:
    x = a["self"]
    rank = len(x.shape) + 1
    if rank != 4 or sorted(d % rank for d in a["dim"] or []) != [2, 3]:
        raise t.refuse("a mean is taken over height and width of a 4-d activation")
    pooled = t.emit("global_avg_pool2d", [x], (x.shape[0], 1, 1))
    return pooled if a["keepdim"] else t.emit("flatten", [pooled], (x.shape[0],), suffix=".flatten")


def _cat(t: Translator, a: Arguments) -> Activation:
    tensors = a["tensors"]
    if any(not isinstance(x, Activation) for x in tensors):
        raise t.refuse("only activations can be concatenated")
    rank = len(tensors[0].shape) + 1
    if int(a["dim"]) % rank != 1:
        raise t.refuse("concatenation is along channels, dim=1")
    if len(tensors) == 1:
        return _identity(t, {"self": tensors[0]})
    return t.emit("concat", tensors, t.output_shape)


def _reshape(t: Translator, a: Arguments) -> Activation:
    x, shape = a["self"], t.output_shape
    if shape == x.shape:
        return _identity(t, a)
    features = (int(np.prod(x.shape)),)
    if shape == features or (shape == (*features, 1) and x.shape == (*features, 1, 1)):
        vector = x if x.flat else t.emit("flatten", [x], features)
        return Activation(vector.name, shape, flat=shape != features)
    raise t.refuse(f"a reshape of {x.shape} to {shape}; only flattening to [N, features] is known")


def _identity(t: Translator, a: Arguments) -> Activation:
    value: Activation = a["self"] if "self" in a else a["input"]
    return value


def _pad(t: Translator, a: Arguments) -> Activation:
    x, pad = a["self"], [int(p) for p in a["pad"]]
    mode, value = a.get("mode", "constant"), a.get("value") or 0
    if mode != "constant" or value != 0 or min(pad) < 0 or any(pad[4:]) or len(x.shape) != 3:
        raise t.refuse()
    left, right, top, bottom = (*pad, 0, 0)[:4]
    return t.emit("pad", [x], t.output_shape, window=Window((1, 1), pads=(top, left, bottom, right)))


ATEN: dict[str, Handler] = {
    "conv2d": _conv2d,
    "convolution": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda t, a: (_batch_norm(t, a),),
    "relu": lambda t, a: _clip(t, a, 0.0, None),
    "relu6": lambda t, a: _clip(t, a, 0.0, 6.0),
    "hardtanh": _clamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "adaptive_max_pool2d": _adaptive_max_pool2d,
    "mean": _mean,
    "cat": _cat,
    "view": _reshape,
    "reshape": _reshape,
    "flatten": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "pad": _pad,
    "constant_pad_nd": _pad,
    **dict.fromkeys(
        ("clone", "alias", "contiguous", "detach", "dropout", "feature_dropout", "lift_fresh_copy", "to", "_to_copy"),
        _identity,
    ),
}
"""The operators that capture understands, by their ATen name without overload; none of them may change the type."""

KEEP_AXES = (_reshape, _identity)
"""What a value may go through between the two halves of a flatten."""
