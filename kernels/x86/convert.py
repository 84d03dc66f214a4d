"""Pixels of up to four channels from NCHW to channels last: sixteen at once, a 32-bit lane each.

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
from hawq_tvm.kernels.generic.costs import RATES, Work
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, framed_rows
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.interface import BuiltKernel, Converter, ConvertRequest, Offer
from hawq_tvm.kernels.x86.panels import STEP
from hawq_tvm.kernels.x86.storages import AVX512, missing
from hawq_tvm.kernels.x86.vectors import LANES, constant, flat, ramp, shuffle


def offer_pixels(request: ConvertRequest, build: Callable[[ConvertRequest], BuiltKernel]) -> Offer | str:
    """The offer of a kernel that makes pixels of four bytes of planes, by what `build` says."""
    if request.target.kind != "llvm":
        return f"written for CPUs through LLVM, not for '{request.target.kind}'"
    lacking = missing(request.features, AVX512)
    if lacking:
        return lacking
    type, to = request.type, request.to
    multiple = to.multiple if to.multiple in (1, STEP) else STEP
    wanted = Storage("NHWC", multiple=multiple, frame=to.frame, offset=to.offset if type.dtype.signed else 0)
    canonical = Storage.canonical(type)
    if (request.source, to) != (canonical, wanted) or len(type.shape) != 3 or type.shape[0] > STEP:
        how = f"pixels of {STEP} or as many"
        return f"copies up to {STEP} channels of bytes to {how}, not {type} in {request.source} to {to}"
    if type.shape[2] < LANES:
        return f"copies {LANES} pixels at once, a row has {type.shape[2]}"
    work = Work(0, to.size_bytes(type, request.batch))
    microseconds = RATES["convert to pixels avx512"].microseconds(work, request.vector_bits)
    return Offer((request.source,), to, microseconds, lambda: build(request))


def _build(request: ConvertRequest) -> BuiltKernel:
    channels, height, width = request.type.shape
    storages = (("x", request.source), ("y", request.to))
    parameters = [stored_parameter(name, request.type, storage, request.batch) for name, storage in storages]

    def body(x: Any, y: Any) -> None:
        planes, pixels, image = flat(x), flat(y), Image(y, request.type, request.to)
        top, left, _, right = request.to.frame
        zeros = int(np.full(STEP, request.to.offset, np.uint8).view(np.int32)[0])

        def row(n: Expr, _block: Expr, h: Expr) -> None:
            with T.serial(-(-width // LANES)) as part:
                start = tirx.min(part * LANES, width - LANES)
                words = constant(zeros, "int32")
                for channel in range(channels):
                    index = ((n * channels + channel) * height + h) * width + start
                    plane = tir.reinterpret(f"uint8x{LANES}", planes[ramp(index, LANES)])
                    words = words ^ tir.shift_left(plane.astype(f"int32x{LANES}"), constant(8 * channel, "int32"))
                place = (n * y.shape[1] + h + top) * (left + width + right) + left + start
                store_pixels(pixels, words, place, image.channels)

        framed_rows(image, row, batch=request.batch, threads=request.batch * height * width * STEP >= MIN_ELEMENTS)

    return BuiltKernel(function(parameters, body), ())


def store_pixels(pixels: Any, words: Expr, place: Expr, channels: int) -> None:
    """Write the first bytes of sixteen words, int32x16, side by side as pixels of so many channels.

    Args:
        pixels: a flat buffer of bytes.
        words: a pixel each.
        place: the first one's number in the buffer.
        channels: that are stored of each.
    """
    stored = tir.reinterpret(f"uint8x{STEP * LANES}", words)
    if channels < STEP:
        stored = shuffle([stored], [STEP * pixel + channel for pixel in range(LANES) for channel in range(channels)])
    T.buffer_store(pixels, stored, [ramp(place * channels, channels * LANES)])


CONVERT_PIXELS = Converter("convert_pixels_avx512", lambda request: offer_pixels(request, _build))
