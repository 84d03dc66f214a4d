"""The table of kernels and what they offer."""

from __future__ import annotations

from collections.abc import Sequence

from hawq_tvm.core.errors import CompileError
from hawq_tvm.kernels.arm.units import ARM_UNITS
from hawq_tvm.kernels.cuda import conv2d as cuda_conv2d
from hawq_tvm.kernels.cuda import convert as cuda_convert
from hawq_tvm.kernels.cuda import depthwise as cuda_depthwise
from hawq_tvm.kernels.cuda import elementwise as cuda_elementwise
from hawq_tvm.kernels.cuda import gemm_layers
from hawq_tvm.kernels.cuda import linear as cuda_linear
from hawq_tvm.kernels.cuda import pooling as cuda_pooling
from hawq_tvm.kernels.dot.concat import concat_kernel
from hawq_tvm.kernels.dot.conv2d import conv2d_kernels
from hawq_tvm.kernels.dot.convert import pixel_converter
from hawq_tvm.kernels.dot.depthwise import depthwise_kernels
from hawq_tvm.kernels.dot.elementwise import elementwise_kernels
from hawq_tvm.kernels.dot.linear import linear_kernels
from hawq_tvm.kernels.dot.pooling import pooling_kernels
from hawq_tvm.kernels.dot.product import DOT_STEP
from hawq_tvm.kernels.dot.quantize import pixel_quantizer
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.dot.winograd import winograd_kernel
from hawq_tvm.kernels.generic import (
    concat,
    conv2d,
    convert,
    elementwise,
    linear,
    nhwc_concat,
    nhwc_conv2d,
    nhwc_elementwise,
    nhwc_pooling,
    pooling,
    quantize,
)
from hawq_tvm.kernels.interface import (
    Converter,
    ConvertRequest,
    Kernel,
    Offer,
    Request,
)
from hawq_tvm.kernels.x86 import amx_layers
from hawq_tvm.kernels.x86.units import X86_UNITS

UNITS: tuple[Unit, ...] = (*X86_UNITS, *ARM_UNITS)
"""The instructions by which CPUs add dot products, best first; of a CPU's own, values are stored for the first."""


def unit_of(features: frozenset[str]) -> Unit | None:
    """The best unit of a CPU with these instruction sets, by LLVM's names; None where it has none."""
    return next((unit for unit in UNITS if unit.needs <= features), None)


def _dot_kernels(unit: Unit) -> tuple[Kernel, ...]:
    single = depthwise_kernels(unit) if unit.step == DOT_STEP else ()  # channels of a pixel are not summed up
    winograd = () if unit.dot_words is None else (winograd_kernel(unit),)
    layers = *winograd, *single, *conv2d_kernels(unit), *linear_kernels(unit)
    if unit not in X86_UNITS:  # Arm's layers without weights are left to the generic kernels
        return layers
    return *layers, *pooling_kernels(unit), *elementwise_kernels(unit), concat_kernel(unit)


KERNELS: tuple[Kernel, ...] = (
    amx_layers.CONV2D_W4_AMX,
    amx_layers.CONV2D_W8_AMX,
    amx_layers.CONV2D_W4_AMX_FEW,
    amx_layers.CONV2D_W8_AMX_FEW,
    amx_layers.LINEAR_W4_AMX,
    amx_layers.LINEAR_W8_AMX,
    nhwc_concat.CONCAT_IN_PLACE,
    *(kernel for unit in UNITS for kernel in _dot_kernels(unit)),
    conv2d.CONV2D_W4_GENERIC,
    nhwc_conv2d.CONV2D_W4_NHWC,
    conv2d.CONV2D_W8_GENERIC,
    nhwc_conv2d.CONV2D_W8_NHWC,
    linear.LINEAR_W4_GENERIC,
    linear.LINEAR_W8_GENERIC,
    elementwise.ADD_GENERIC,
    nhwc_elementwise.ADD_NHWC,
    elementwise.REQUANTIZE_GENERIC,
    nhwc_elementwise.REQUANTIZE_NHWC,
    concat.CONCAT_GENERIC,
    nhwc_concat.CONCAT_NHWC,
    concat.PAD_CHANNELS_GENERIC,
    nhwc_elementwise.PAD_CHANNELS_NHWC,
    pooling.MAX_POOL2D_GENERIC,
    nhwc_pooling.MAX_POOL2D_NHWC,
    pooling.AVG_POOL2D_GENERIC,
    nhwc_pooling.AVG_POOL2D_NHWC,
    pooling.GLOBAL_AVG_POOL2D_GENERIC,
    nhwc_pooling.GLOBAL_AVG_POOL2D_NHWC,
    gemm_layers.CONV2D_W4_MMA,
    gemm_layers.CONV2D_W8_MMA,
    gemm_layers.LINEAR_W8_MMA,
    gemm_layers.CONV2D_W4_WMMA,
    gemm_layers.CONV2D_W8_WMMA,
    gemm_layers.LINEAR_W8_WMMA,
    cuda_depthwise.CONV2D_DEPTHWISE,
    cuda_conv2d.CONV2D_CUDA,
    cuda_conv2d.CONV2D_CUDA_NHWC,
    cuda_linear.LINEAR_CUDA,
    cuda_elementwise.ADD_CUDA,
    cuda_elementwise.ADD_CUDA_NHWC,
    cuda_elementwise.REQUANTIZE_CUDA,
    cuda_elementwise.REQUANTIZE_CUDA_NHWC,
    cuda_elementwise.CONCAT_CUDA,
    cuda_elementwise.CONCAT_CUDA_NHWC,
    cuda_elementwise.PAD_CHANNELS_CUDA,
    cuda_elementwise.PAD_CHANNELS_CUDA_NHWC,
    cuda_pooling.MAX_POOL2D_CUDA,
    cuda_pooling.MAX_POOL2D_CUDA_NHWC,
    cuda_pooling.AVG_POOL2D_CUDA,
    cuda_pooling.AVG_POOL2D_CUDA_NHWC,
    cuda_pooling.GLOBAL_AVG_POOL2D_CUDA,
    cuda_pooling.GLOBAL_AVG_POOL2D_CUDA_NHWC,
    cuda_pooling.GLOBAL_AVG_POOL2D_CUDA_NHWC_NCHW,
)
"""Every kernel; of offers that cost the same, the earlier row's is taken. To add one, see `docs/adding.md`."""

CONVERTERS: tuple[Converter, ...] = (
    *map(pixel_converter, UNITS),
    convert.CONVERT_GENERIC,
    cuda_convert.CONVERT_CUDA,
)
"""Every way to copy a value into another storage, best first."""

QUANTIZERS: tuple[Converter, ...] = (*map(pixel_quantizer, UNITS), quantize.QUANTIZE_GENERIC)
"""Every way to store real inputs, float32 in canonical order, as a network's integers, best first."""


def collect_offers(request: Request) -> dict[str, Offer | str]:
    """Every kernel's answer to a request, by name in the order of the table: its offer, or why it declines.

    Raises:
        CompileError: all declined; the message is the table of their reasons.
    """
    answers = {kernel.name: kernel.offer(request) for kernel in KERNELS}
    if any(isinstance(answer, Offer) for answer in answers.values()):
        return answers
    lines = "\n".join(f"  {name}: {reason}" for name, reason in answers.items())
    raise CompileError(
        f"no kernel takes layer '{request.node.name}' ({request.node.op.kind}) "
        f"on target '{request.target.name}':\n{lines}"
    )


def offer_conversion(request: ConvertRequest, converters: Sequence[Converter] = CONVERTERS) -> tuple[str, Offer] | None:
    """The first converter that takes a request, by name, with its offer; None where all decline."""
    for converter in converters:
        answer = converter.offer(request)
        if not isinstance(answer, str):
            return converter.name, answer
    return None
