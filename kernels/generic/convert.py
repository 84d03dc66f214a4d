"""Copies between NCHW and channels last, one byte an element."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from tvm.script.ir_builder import tirx as T

from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.generic.costs import RATES, Work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, framed_rows, over_channels
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import BuiltKernel, Converter, ConvertRequest, Offer


def _offer(request: ConvertRequest) -> Offer | str:
    if request.target.kind != "llvm":
        return f"written for CPUs through LLVM, not for '{request.target.kind}'"
    canonical = Storage.canonical(request.type)
    for storage in (request.source, request.to):
        offset = storage.offset if request.type.dtype.signed else 0
        plain = replace(storage, bits=8, offset=offset)
        last = storage.order == "NHWC" or storage.block > 1
        if not (storage == canonical or (storage == plain and last)) or len(request.type.shape) != 3:
            how = f"{request.source} to {request.to}"
            return f"copies images of bytes between NCHW, channels last and planes of channels, not {how}"
    size = max(storage.size_bytes(request.type, request.batch) for storage in (request.source, request.to))
    rates, build = (
        ("convert to nchw", _to_canonical) if request.to == canonical else ("convert to nhwc", _to_channels_last)
    )
    microseconds = RATES[rates].microseconds(Work(0, size), request.vector_bits)
    return Offer((request.source,), request.to, microseconds, lambda: build(request))


def _parameters(request: ConvertRequest) -> list[Any]:
    storages = (("x", request.source), ("y", request.to))
    return [stored_parameter(name, request.type, storage, request.batch) for name, storage in storages]


def _to_channels_last(request: ConvertRequest) -> BuiltKernel:
    channels, _, width = request.type.shape

    def body(x: Any, y: Any) -> None:
        source = Image(x, request.type, request.source) if request.source != Storage.canonical(request.type) else None
        image = Image(y, request.type, request.to)
        top, left, _, _ = request.to.frame

        def row(n: Expr, _block: Expr, h: Expr) -> None:
            with T.serial(width) as w:

                def store(c: Expr) -> None:
                    image.store(x[n, c, h, w] if source is None else source[n, c, h, w], n, c, h, w)

                over_channels(image, 0, channels, store)
            image.zero(n, h + top, (left, width), (channels, image.filled_up))

        framed_rows(image, row, batch=request.batch, threads=_threads(request))

    return BuiltKernel(function(_parameters(request), body), ())


def _to_canonical(request: ConvertRequest) -> BuiltKernel:
    channels, height, width = request.type.shape

    def body(x: Any, y: Any) -> None:
        source = Image(x, request.type, request.source)
        with (T.parallel if _threads(request) else T.serial)(request.batch * height) as task:
            n, h = task // height, task % height

            def row(c: Expr) -> None:
                with T.serial(width) as w:
                    T.buffer_store(y, source[n, c, h, w].astype(y.dtype), [n, c, h, w])

            over_channels(source, 0, channels, row)

    return BuiltKernel(function(_parameters(request), body), ())


def _threads(request: ConvertRequest) -> bool:
    return request.batch * prod(request.type.shape) >= MIN_ELEMENTS


CONVERT_GENERIC = Converter("convert_generic", _offer)
