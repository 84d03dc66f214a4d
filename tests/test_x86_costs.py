"""What VNNI kernels say that they cost, counted by hand, and that a network takes them for it."""

from __future__ import annotations

import pytest

from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core.ir import IntType, TensorType, Window
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import Request
from hawq_tvm.kernels.generic.costs import CALL_US, RATES, Rates

from .builders import one_node_graph
from .cpus import HOST
from .dot_kernels import VNNI, offer_of
from .test_dot_conv2d import conv, request_for
from .test_dot_linear import linear_request

U8 = IntType.parse("u8")
SAME = Window((3, 3), pads=(1, 1, 1, 1))


def image(channels: int, height: int, width: int) -> TensorType:
    return TensorType(U8, (channels, height, width), 1.0)


CASES: dict[str, tuple[str, Request, str, tuple[int, int, int]]] = {
    # 17 columns, 9 rows; 48 channels, 9 taps of 16 channels
    "dense": (
        "conv2d_u8s8s32_avx512vnni", request_for(conv(16, 48, SAME), image(16, 9, 17), "u8"),
        "conv2d vnni", (9 * 17 * 48 * 9 * 16, 9 * 17 * 48, 0),
    ),
    "dense, 4 bits, with a residual, in frames": (
        "conv2d_u8s4s32_avx512vnni",
        request_for(conv(16, 48, SAME, bits=4, residual=1), image(16, 9, 17), "u8", extra=(1, 2, 3, 4)),
        "conv2d vnni w4 residual", (9 * 17 * 48 * 9 * 16, 9 * 17 * 48, 0),
    ),
    # one long row of 2 x 20 pixels, in 5 tiles of 8
    "pointwise": (
        "conv2d_u8s8s32_avx512vnni", request_for(conv(20, 16, Window((1, 1))), image(20, 4, 5), "u8", batch=2),
        "conv2d vnni", (40 * 16 * 32, 40 * 16, 0),
    ),
    # 3 x 4 tiles of 4x4 pixels, at 36 points: numbers of 32 input channels, and as many of the weights of 48 outputs
    "a quarter of the multiplications": (
        "conv2d_winograd_u8s8s32_avx512vnni", request_for(conv(32, 40, SAME), image(32, 9, 14), "u8"),
        "winograd vnni", (36 * 12 * 32 * 48, 16 * 12 * 48, 36 * 32 * (12 + 48)),
    ),
    # 7 columns in 2 tiles of 4: 4 sets of 2 pixels, each with one quad a row of the kernel
    "depthwise": (
        "conv2d_depthwise_u8s8s32_avx512vnni", request_for(conv(32, 32, SAME, groups=32), image(32, 5, 7), "u8"),
        "depthwise vnni", (0, 5 * 7 * 32, 5 * 4 * 3 * 4 * 32),
    ),
    # 2 blocks of 8 vectors, 3 steps of 4 features
    "linear": (
        "linear_u8s8s32_avx512vnni", linear_request(10, 200, 8, ("u8", "u8", "u8"), 40, batch=2),
        "linear vnni", (2 * 256 * 12, 2 * 200, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_costs_count_the_work(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, request, rates, expected = CASES[case]
    counts = []
    for unit in (Rates(1000, 0), Rates(0, 1000), Rates(0, 0, 1000)):
        for name in RATES:
            monkeypatch.setitem(RATES, name, unit if name == rates else Rates(10**9, 10**9, 10**9))
        counts.append(round(offer_of(kernel, request).cost - CALL_US, 6))
    assert tuple(counts) == expected


@pytest.mark.skipif(not HOST.features >= VNNI.needs, reason="this machine lacks AVX512-VNNI")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 64])
def test_a_large_layer_is_worth_its_conversions(bits: int, groups: int) -> None:
    """NCHW in and out, as where a network is one layer."""
    op = conv(64, 64, SAME, bits=bits, groups=groups)
    assert isinstance(op, Conv2d)
    lowered = lower(one_node_graph(op, [image(64, 56, 56)], U8), TARGETS["llvm"])
    assert "avx512vnni" in lowered.plan.kernels["layer"]
