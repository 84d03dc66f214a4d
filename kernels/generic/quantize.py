"""The two float steps beside a network, for libraries that take and give reals.

They compute what `hawq_tvm.core.interpreter` says, bit for bit, NaN and infinity refused as there: each task notes
whether it met any, and the function asserts that none did.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.interpreter import NOT_FINITE
from hawq_tvm.core.ir import TensorType
from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.generic.costs import CALL_US
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import Parameter, function, stored_parameter
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import BuiltKernel, Converter, ConvertRequest, Offer

LARGEST = float(np.finfo(np.float32).max)

REALS = "reals"
"""The parameter's name."""

_PIECE = 4096
"""Elements of a task."""


def reals_parameter(type: TensorType, batch: int) -> Parameter:
    """Real inputs as users have them: float32 [N, ...], in order."""
    return REALS, (batch, *type.shape), "float32"


def refuse_unless_finite(flags: Any, tasks: int) -> None:
    """Assert that no task noted anything but 0; tasks write one element each."""
    total = T.alloc_buffer((1,), "uint32", scope="local")
    T.buffer_store(total, tirx.const(0, "uint32"), [0])
    with T.serial(tasks) as task:
        T.buffer_store(total, total[0] | flags[task], [0])
    with T.Assert(total[0] == tirx.const(0, "uint32"), NOT_FINITE, error_kind="ValueError"):
        T.evaluate(0)


def _offer(request: ConvertRequest) -> Offer | str:
    if request.target.kind != "llvm":
        return f"written for CPUs through LLVM, not for '{request.target.kind}'"
    canonical = Storage.canonical(request.type)
    if request.to != canonical:
        return f"quantises into {canonical}, not into {request.to}"
    return Offer((request.source,), request.to, CALL_US, lambda: _build(request))


def _build(request: ConvertRequest) -> BuiltKernel:
    type, size = request.type, request.batch * prod(request.type.shape)
    piece = min(_PIECE, size)
    tasks = -(-size // piece)

    def quantized(x: Expr) -> Expr:
        scaled = tirx.floor(x.astype("float64") / tirx.const(type.scale, "float64") + tirx.const(0.5, "float64"))
        lo, hi = (tirx.const(float(bound), "float64") for bound in (type.dtype.lo, type.dtype.hi))
        return tirx.max(tirx.min(scaled, hi), lo).astype(type.dtype.carrier)

    def body(x: Any, y: Any) -> None:
        reals, integers = (T.decl_buffer((size,), buffer.dtype, data=buffer.data) for buffer in (x, y))
        flags = T.alloc_buffer((tasks,), "uint32")
        with (T.parallel if size >= MIN_ELEMENTS else T.serial)(tasks) as task:
            T.buffer_store(flags, tirx.const(0, "uint32"), [task])
            with T.serial(piece) as element:
                place = tirx.min(task * piece, size - piece) + element  # the last piece moves left until it fits
                value = reals[place]
                finite = tirx.abs(value) <= tirx.const(LARGEST, "float32")
                T.buffer_store(
                    flags, flags[task] | tirx.Select(finite, tirx.const(0, "uint32"), tirx.const(1, "uint32")), [task]
                )
                T.buffer_store(integers, quantized(value), [place])
        refuse_unless_finite(flags, tasks)

    parameters = [reals_parameter(type, request.batch), stored_parameter("y", type, request.to, request.batch)]
    return BuiltKernel(function(parameters, body, anywhere=(REALS,)), ())


QUANTIZE_GENERIC = Converter("quantize_generic", _offer)


def build_dequantize(type: TensorType, batch: int) -> BuiltKernel:
    """The output's integers, canonical, to float32 of the same shape."""
    size = batch * prod(type.shape)

    def body(x: Any, y: Any) -> None:
        integers, reals = (T.decl_buffer((size,), buffer.dtype, data=buffer.data) for buffer in (x, y))
        with T.serial(size) as place:
            value = integers[place].astype("float64") * tirx.const(type.scale, "float64")
            T.buffer_store(reals, value.astype("float32"), [place])

    storage = Storage.canonical(type)
    parameters = [stored_parameter("x", type, storage, batch), ("y", (batch, *type.shape), "float32")]
    return BuiltKernel(function(parameters, body), ())
