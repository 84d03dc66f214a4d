"""Copies between the storages of a GPU: a thread for each word of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.cuda.acceptance import too_large
from hawq_tvm.kernels.cuda.costs import facts, moving
from hawq_tvm.kernels.cuda.launch import thread_a_word
from hawq_tvm.kernels.cuda.storages import channels_last
from hawq_tvm.kernels.cuda.values import Place, Value
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.interface import BuiltKernel, Converter, ConvertRequest, Offer


def _offer(request: ConvertRequest) -> Offer | str:
    if request.target.kind != "cuda":
        return f"written for NVIDIA GPUs, not for '{request.target.kind}'"
    for storage in (request.source, request.to):
        if storage not in (Storage.canonical(request.type), channels_last(request.type)):
            return f"copies between NCHW and the channels last of a GPU, not {request.source} to {request.to}"
    reason = too_large((request.type,), request.batch)
    if reason is not None:
        return reason
    source, to = (request.type, request.source), (request.type, request.to)

    def body(inputs: Sequence[Value], _constants: Any, y: Value, at: Place) -> list[Expr]:
        return inputs[0].load_run(*at, y.lanes)

    prediction = moving(facts(request.target), [source, to], request.batch)

    def build() -> BuiltKernel:
        return thread_a_word([source], (), to, request.batch, body)

    return Offer((request.source,), request.to, prediction.us(), build, prediction)


CONVERT_CUDA = Converter("convert_cuda", _offer)
