"""Pixels of up to four channels from NCHW to channels last: a vector of them at once, a 32-bit lane each.

This is how images enter a network: three planes become four bytes a pixel, the fourth a zero, or three; offsets added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.storage import Storage
from hawq_tvm.kernels.dot.product import DOT_STEP
from hawq_tvm.kernels.dot.unit import Unit, missing
from hawq_tvm.kernels.dot.vectors import constant, flat, ramp, shuffle
from hawq_tvm.kernels.generic.costs import Work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, framed_rows
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import BuiltKernel, Converter, ConvertRequest, Offer


def pixel_converter(unit: Unit) -> Converter:
    """By vectors of a unit."""
    return Converter(f"convert_pixels_{unit.name}", lambda request: offer_pixels(request, unit, _build))


def offer_pixels(
    request: ConvertRequest, unit: Unit, build: Callable[[ConvertRequest, int], BuiltKernel]
) -> Offer | str:
    """The offer of a kernel that makes pixels of four bytes of planes; `build` is told the lanes of a vector."""
    if request.target.kind != "llvm":
        return f"written for CPUs through LLVM, not for '{request.target.kind}'"
    lacking = missing(request.features, unit.needs)
    if lacking:
        return lacking
    type, to = request.type, request.to
    multiple = to.multiple if to.multiple in (1, DOT_STEP) else DOT_STEP
    wanted = Storage("NHWC", multiple=multiple, frame=to.frame, offset=to.offset if type.dtype.signed else 0)
    canonical = Storage.canonical(type)
    if (request.source, to) != (canonical, wanted) or len(type.shape) != 3 or type.shape[0] > DOT_STEP:
        lies = f"{type} in {request.source} to {to}"
        return f"copies up to {DOT_STEP} channels of bytes to pixels of {DOT_STEP} or as many, not {lies}"
    if type.shape[2] < unit.lanes:
        return f"copies {unit.lanes} pixels at once, a row has {type.shape[2]}"
    microseconds = unit.cost("convert to pixels avx512", Work(0, to.size_bytes(type, request.batch)))
    return Offer((request.source,), to, microseconds, lambda: build(request, unit.lanes))


def _build(request: ConvertRequest, lanes: int) -> BuiltKernel:
    channels, height, width = request.type.shape
    storages = (("x", request.source), ("y", request.to))
    parameters = [stored_parameter(name, request.type, storage, request.batch) for name, storage in storages]

    def body(x: Any, y: Any) -> None:
        planes, pixels, image = flat(x), flat(y), Image(y, request.type, request.to)
        top, left, _, right = request.to.frame
        zeros = int(np.full(DOT_STEP, request.to.offset, np.uint8).view(np.int32)[0])

        def row(n: Expr, _block: Expr, h: Expr) -> None:
            with T.serial(-(-width // lanes)) as part:
                start = tirx.min(part * lanes, width - lanes)
                words = constant(zeros, "int32", lanes)
                for channel in range(channels):
                    index = ((n * channels + channel) * height + h) * width + start
                    plane = tir.reinterpret(f"uint8x{lanes}", planes[ramp(index, lanes)])
                    byte = tir.shift_left(plane.astype(f"int32x{lanes}"), constant(8 * channel, "int32", lanes))
                    words = words ^ byte
                place = (n * y.shape[1] + h + top) * (left + width + right) + left + start
                store_pixels(pixels, words, lanes, place, image.channels)

        framed_rows(image, row, batch=request.batch, threads=request.batch * height * width * DOT_STEP >= MIN_ELEMENTS)

    return BuiltKernel(function(parameters, body), ())


def store_pixels(pixels: Any, words: Expr, lanes: int, place: Expr, channels: int) -> None:
    """Write the first bytes of a vector of words, int32, side by side as pixels of so many channels.

    Args:
        pixels: a flat buffer of bytes.
        words: a pixel each.
        lanes: of the vector.
        place: the first one's number in the buffer.
        channels: that are stored of each.
    """
    stored = tir.reinterpret(f"{pixels.dtype}x{DOT_STEP * lanes}", words)
    if channels < DOT_STEP:
        stored = shuffle(
            [stored], [DOT_STEP * pixel + channel for pixel in range(lanes) for channel in range(channels)]
        )
    T.buffer_store(pixels, stored, [ramp(place * channels, channels * lanes)])
