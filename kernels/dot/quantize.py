"""Real pixels of up to four channels, quantised on their way from NCHW to channels last: a vector of them at once.

This is how float images enter a network, in one pass over them: what `hawq_tvm.core.interpreter.quantize_input` says,
then what `kernels/dot/convert.py` says, by an `exact_multiplication`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx import op as tir

from hawq_tvm.core.input_steps import LARGEST, Multiplication, exact_multiplication, input_steps
from hawq_tvm.core.ir import TensorType
from hawq_tvm.kernels.dot.convert import offer_pixels, store_pixels
from hawq_tvm.kernels.dot.product import DOT_STEP
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.vectors import constant, flat, ramp
from hawq_tvm.kernels.generic.expressions import Expr
from hawq_tvm.kernels.generic.functions import function, stored_parameter
from hawq_tvm.kernels.generic.nhwc import Image, framed_rows
from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS
from hawq_tvm.kernels.generic.quantize import REALS, reals_parameter, refuse_unless_finite
from hawq_tvm.kernels.interface import BuiltKernel, Converter, ConvertRequest, Offer

_MAGNITUDE = 0x7FFFFFFF
_INFINITE = 0x7F800000
"""Bits of a float32 without its sign, and of infinity; those of NaN are more (IEEE 754-2019, section 3.4)."""


def _build(request: ConvertRequest, lanes: int, by: Multiplication) -> BuiltKernel:
    type, batch = request.type, request.batch
    channels, height, width = type.shape

    def body(x: Any, y: Any) -> None:
        planes, pixels, image = flat(x), flat(y), Image(y, type, request.to)
        top, left, _, right = request.to.frame
        zeros = int(np.full(DOT_STEP, request.to.offset, np.uint8).view(np.int32)[0])
        flags = T.alloc_buffer((batch * height,), "uint32")

        def row(n: Expr, _block: Expr, h: Expr) -> None:
            largest = T.alloc_buffer((lanes,), "int32", align=64)
            places = ramp(0, lanes)
            T.buffer_store(largest, constant(0, "int32", lanes), [places])
            with T.serial(-(-width // lanes)) as part:
                start = tirx.min(part * lanes, width - lanes)
                words = constant(zeros, "int32", lanes)
                for channel in range(channels):
                    real = planes[ramp(((n * channels + channel) * height + h) * width + start, lanes)]
                    magnitude = tir.reinterpret(f"int32x{lanes}", real) & constant(_MAGNITUDE, "int32", lanes)
                    T.buffer_store(largest, tirx.max(largest[places], magnitude), [places])
                    integers = _quantized(real, type, by, lanes) & constant(0xFF, "int32", lanes)
                    words = words ^ tir.shift_left(integers, constant(8 * channel, "int32", lanes))
                place = (n * y.shape[1] + h + top) * (left + width + right) + left + start
                store_pixels(pixels, words, lanes, place, image.channels)
            most = tir.call_llvm_pure_intrin("int32", "llvm.vector.reduce.smax", largest[places])
            T.buffer_store(flags, (most >= _INFINITE).astype("uint32"), [n * height + h])

        framed_rows(image, row, batch=batch, threads=batch * height * width * DOT_STEP >= MIN_ELEMENTS)
        refuse_unless_finite(flags, batch * height)

    parameters = [reals_parameter(type, batch), stored_parameter("y", type, request.to, batch)]
    return BuiltKernel(function(parameters, body, anywhere=(REALS,)), ())


def _quantized(real: Expr, type: TensorType, by: Multiplication, lanes: int) -> Expr:
    """Integers of a vector of reals, int32."""
    steps = input_steps(type)
    least, most = np.nextafter(steps[0], -LARGEST), steps[-1]  # beyond them nothing changes any more
    upper, lower = (constant(float(end), "float32", lanes) for end in (most, least))
    limited = tirx.max(tirx.min(real, upper), lower)
    wide, wides = limited.astype(f"float64x{lanes}"), f"float64x{lanes}"
    inverse, half = (constant(value, "float64", lanes) for value in (by.inverse, by.half))
    scaled = tir.call_llvm_pure_intrin(wides, "llvm.fma", wide, inverse, half)
    return tirx.floor(scaled).astype(f"int32x{lanes}")


def pixel_quantizer(unit: Unit) -> Converter:
    """By vectors of a unit."""

    def offer(request: ConvertRequest) -> Offer | str:
        found = exact_multiplication(request.type)
        if found is None:
            return f"multiplies by 1 / scale, which is not proved to divide by {request.type.scale}"
        return offer_pixels(request, unit, partial(_build, by=found))

    return Converter(f"quantize_pixels_{unit.name}", offer)
