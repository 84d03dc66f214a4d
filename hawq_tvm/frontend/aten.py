"""What capture understands: one function for each ATen operator, from exported node to float-graph node.

A function takes the `Translator` and the operator's arguments by name, and returns the value that the exported node
becomes: the name of an activation, a constant tensor, or a plain number. Anything absent from `ATEN` is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hawq_tvm.core.float_ir import Clip
from hawq_tvm.core.ir import Shape, Window
from hawq_tvm.frontend.translator import ZEROS, Activation, Translator, Value


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
    window, counts = _with_ceil(window, x.shape[1:], shape[1:]), counts.astype(np.float32)
    if kernel == (1, 1) and not any(window.pads) and (counts == 1).all():
        return t.emit("max_pool2d", [x], shape, window=window)  # takes every k-th pixel, and rounds nothing
    return t.emit("avg_pool2d", [x], shape, window=window, counts=counts)


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
        raise t.refuse(ZEROS)
    rank = len(tensors[0].shape) + 1
    if int(a["dim"]) % rank != 1:
        raise t.refuse("concatenation is along channels, dim=1")
    before, own, after = _zeros_apart(t, tensors)
    if len(own) == 1 and not (before or after):
        return _identity(t, {"self": own[0]})
    if not (before or after):
        return t.emit("concat", own, t.output_shape)
    channels = sum(x.shape[0] for x in own)
    joined = own[0] if len(own) == 1 else t.emit("concat", own, (channels, *own[0].shape[1:]))
    return _pad_channels(t, joined, before, after)


def _zeros_apart(t: Translator, tensors: Sequence[Activation]) -> tuple[int, Sequence[Activation], int]:
    """What is concatenated, without the zeros at its ends, as ``torch.cat([x, x * 0], 1)``; their channels."""
    images = [number for number, x in enumerate(tensors) if len(x.shape) != 3 or not t.is_zero(x)]
    first, last = (images[0], images[-1] + 1) if images else (0, len(tensors))
    before, after = (sum(x.shape[0] for x in zeros) for zeros in (tensors[:first], tensors[last:]))
    return before, tensors[first:last], after


def _pad_channels(t: Translator, x: Activation, before: int, after: int) -> Activation:
    channels, height, width = x.shape
    return t.emit("pad_channels", [x], (before + channels + after, height, width), channel_pads=(before, after))


_WHOLE = 2**63 - 1
"""Where a slice ends that leaves nothing out; the batch has no other size here."""


def _slice(t: Translator, a: Arguments) -> Activation:
    """Every k-th row or column, which is a max-pool whose windows hold one pixel; a whole axis stays as it is."""
    x, step = a["self"], a["step"]
    axis = int(a["dim"]) % (len(x.shape) + 1)
    size = x.shape[axis - 1] if axis else _WHOLE
    taken = range(size)[slice(a["start"], a["end"], step)]
    if taken == range(size):
        return _identity(t, a)
    if len(x.shape) != 3 or axis < 2 or taken != range(0, size, step):
        raise t.refuse()
    strides = (step, 1) if axis == 2 else (1, step)
    return t.emit("max_pool2d", [x], t.output_shape, window=Window((1, 1), strides))


def _zeros_like(t: Translator, a: Arguments) -> Activation:
    return _affine(t, a["self"], 0.0, 0.0)


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
    x: Activation = a["self"]
    pad = [int(p) for p in a["pad"]]
    mode, value = a.get("mode", "constant"), a.get("value") or 0
    if mode != "constant" or value != 0 or min(pad) < 0 or any(pad[6:]) or len(x.shape) != 3:
        raise t.refuse()
    left, right, top, bottom, before, after = (*pad, *(0,) * 6)[:6]
    if before or after:
        x = _pad_channels(t, x, before, after)
    if not any(pad[:4]):
        return x
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
    "slice": _slice,
    "zeros_like": _zeros_like,
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
