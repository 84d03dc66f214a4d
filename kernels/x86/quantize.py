"""Real pixels of up to four channels, quantised on their way from NCHW to channels last: sixteen at once.

This is how float images enter a network, in one pass over them: what `hawq_tvm.core.interpreter.quantize_input` says,
then what `kernels/x86/convert.py` says, by a multiplication that `multiplication_is_exact` proves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.input_steps import HALF, LARGEST, input_steps, multiplication_is_exact
from hawq_tvm.core.ir import TensorType
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, framed_rows
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.generic.quantize import REALS, reals_parameter, refuse_unless_finite
from hawq_tvm.kernels.interface import BuiltKernel, Converter, ConvertRequest, Offer
from hawq_tvm.kernels.x86.convert import offer_pixels, store_pixels
from hawq_tvm.kernels.x86.panels import STEP
from hawq_tvm.kernels.x86.vectors import LANES, constant, flat, ramp

_MAGNITUDE = 0x7FFFFFFF
_INFINITE = 0x7F800000
"""Bits of a float32 without its sign, and of infinity; those of NaN are more (IEEE 754-2019, section 3.4)."""


def _build(request: ConvertRequest) -> BuiltKernel:
    type, batch = request.type, request.batch
    channels, height, width = type.shape

    def body(x: Any, y: Any) -> None:
        planes, pixels, image = flat(x), flat(y), Image(y, type, request.to)
        top, left, _, right = request.to.frame
        zeros = int(np.full(STEP, request.to.offset, np.uint8).view(np.int32)[0])
        flags = T.alloc_buffer((batch * height,), "uint32")

        def row(n: Expr, _block: Expr, h: Expr) -> None:
            largest = T.alloc_buffer((LANES,), "int32", align=64)
            lanes = ramp(0, LANES)
            T.buffer_store(largest, constant(0, "int32"), [lanes])
            with T.serial(-(-width // LANES)) as part:
                start = tirx.min(part * LANES, width - LANES)
                words = constant(zeros, "int32")
                for channel in range(channels):
                    real = planes[ramp(((n * channels + channel) * height + h) * width + start, LANES)]
                    magnitude = tir.reinterpret(f"int32x{LANES}", real) & constant(_MAGNITUDE, "int32")
                    T.buffer_store(largest, tirx.max(largest[lanes], magnitude), [lanes])
                    integers = _quantized(real, type) & constant(0xFF, "int32")
                    words = words ^ tir.shift_left(integers, constant(8 * channel, "int32"))
                place = (n * y.shape[1] + h + top) * (left + width + right) + left + start
                store_pixels(pixels, words, place, image.channels)
            most = tir.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", largest[lanes])
            T.buffer_store(flags, (most >= _INFINITE).astype("uint32"), [n * height + h])

        framed_rows(image, row, batch=batch, threads=batch * height * width * STEP >= MIN_ELEMENTS)
        refuse_unless_finite(flags, batch * height)

    parameters = [reals_parameter(type, batch), stored_parameter("y", type, request.to, batch)]
    return BuiltKernel(function(parameters, body, anywhere=(REALS,)), ())


def _quantized(real: Expr, type: TensorType) -> Expr:
    """Integers of sixteen reals: int32x16."""
    steps = input_steps(type)
    least, most = np.nextafter(steps[0], -LARGEST), steps[-1]  # beyond them nothing changes any more
    limited = tirx.max(tirx.min(real, constant(float(most), "float32")), constant(float(least), "float32"))
    wide, wides = limited.astype(f"float64x{LANES}"), f"float64x{LANES}"
    inverse, half = constant(1 / type.scale, "float64"), constant(HALF, "float64")
    scaled = tir.call_llvm_pure_intrin(wides, "llvm.fma", wide, inverse, half)
    return tirx.floor(scaled).astype(f"int32x{LANES}")


def _offer(request: ConvertRequest) -> Offer | str:
    if not multiplication_is_exact(request.type):
        return f"multiplies by 1 / scale, which is not proved to divide by {request.type.scale}"
    return offer_pixels(request, _build)


QUANTIZE_PIXELS = Converter("quantize_pixels_avx512", _offer)
