"""Convolutions by dot products against the interpreter, byte for byte, over awkward shapes and extreme values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.core.dyadic import to_dyadic
from hawq_tvm.core.float32_rescale import float32_is_exact, odd_multipliers
from hawq_tvm.core.float32_residual import residual_multipliers
from hawq_tvm.core.ir import IntType, Rescale, TensorType, Window
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import Offer, Request, collect_offers, unit_of
from hawq_tvm.kernels.dot.cut import Cut
from hawq_tvm.kernels.dot.float32 import in_float32
from hawq_tvm.kernels.dot.result import floors_of
from hawq_tvm.kernels.dot.unit import Unit
from hawq_tvm.kernels.x86.storages import MULTIPLY_ADD

from .cpus import CPUS, machine_of
from .dot_kernels import (
    UNIT,
    VNNI,
    Frame,
    decline_of,
    dot_request,
    kernel_of,
    offer_of,
    some_variants,
    writes_what_the_interpreter_says,
)

KERNEL = {8: "conv2d_u8s8s32_avx512vnni", 4: "conv2d_u8s4s32_avx512vnni"}
sweep = settings(max_examples=12)
every_unit = pytest.mark.parametrize("name", UNIT)


def name_of(op: Conv2d) -> str:
    return KERNEL[4 if op.weight_bits <= 4 else 8]


def conv(
    channels: int,
    out: int,
    window: Window,
    *,
    bits: int = 8,
    groups: int = 1,
    output: str = "u8",
    shift: int = 40,
    residual: int = 0,
    odd: bool = False,
    seed: int = 0,
) -> Conv2d:
    """Random weights; multipliers as large as the proofs allow with that shift, `odd` with 24 digits."""
    rng, limit, dtype = np.random.default_rng(seed), 1 << (bits - 1), IntType.parse(output)
    weight = rng.integers(-limit, limit, (out, channels // groups, *window.kernel))
    weight.flat[0] = -limit
    bound = 256 * int(np.abs(weight).reshape(out, -1).sum(axis=1).max()) + 4000
    most = min(2**31 - 1, max(1, (1 << min(60, 29 + shift)) // bound))
    factors = rng.integers(0, min(2**31, 1 << min(30, 21 + shift)), residual) if residual else None
    multipliers = rng.integers(0, most, out, endpoint=True)
    if odd and factors is not None:
        multipliers, factors = residual_multipliers(multipliers, factors, shift)
    elif odd:
        multipliers = odd_multipliers(multipliers, shift)
    rescale = Rescale(multipliers, shift, dtype.lo, dtype.hi, factors)
    return Conv2d(weight, bits, rng.integers(-3000, 3000, out), rescale, window, groups)


def request_for(
    op: Conv2d,
    x: TensorType,
    output: str,
    *,
    residual: str = "u8",
    extra: Frame = (0, 0, 0, 0),
    batch: int = 1,
    unit: Unit = VNNI,
) -> Request:
    """With frames that hold the padding and `extra` more."""
    dtype, inputs = IntType.parse(output), [x]
    if op.rescale.residual is not None:
        height, width = op.window.output_size(*x.shape[1:])
        inputs.append(TensorType(IntType.parse(residual), (op.out_channels, height, width), 1.0))
    around = tuple(pad + more for pad, more in zip(op.window.pads, extra, strict=True))
    frames = [around, *[extra[::-1]] * (len(inputs) - 1), extra]
    return dot_request(op, inputs, dtype, frames, batch=batch, unit=unit)


@every_unit
@sweep
@given(
    channels=st.sampled_from([1, 3, 4, 5, 16, 20, 36]),
    out=st.sampled_from([9, 16, 17, 31, 32, 48, 65, 96]),
    size=st.tuples(st.integers(3, 9), st.integers(3, 18)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    extra=st.sampled_from([(0, 0, 0, 0), (1, 0, 2, 3)]),
    bits=st.sampled_from([2, 4, 5, 8]),
    types=st.tuples(*[st.sampled_from(["u8", "s8", "u4", "s5"])] * 3),
    shift=st.sampled_from([1, 17, 32, 33, 34, 40, 47]),
    residual=st.sampled_from(["", "one", "each"]),
    batch=st.integers(1, 2),
    fused=st.booleans(),
    odd=st.booleans(),
    seed=st.integers(0, 99),
)
def test_convolutions(
    name: str, channels: int, out: int, size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int],
    pads: Frame, dilations: tuple[int, int], extra: Frame, bits: int, types: tuple[str, str, str], shift: int,
    residual: str, batch: int, fused: bool, odd: bool, seed: int,
) -> None:  # fmt: skip
    window = Window(kernel, strides, pads, dilations)
    if size[0] + pads[0] + pads[2] < window.reach[0] or size[1] + pads[1] + pads[3] < window.reach[1]:
        size = (9, 18)
    factors = {"": 0, "one": 1, "each": out}[residual]
    op = conv(channels, out, window, bits=bits, output=types[1], shift=shift, residual=factors, odd=odd, seed=seed)
    x = TensorType(IntType.parse(types[0]), (channels, *size), 1.0)
    request = request_for(op, x, types[1], residual=types[2], extra=extra, batch=batch, unit=UNIT[name])
    features = request.features if fused else request.features - MULTIPLY_ADD
    writes_what_the_interpreter_says(kernel_of(request, UNIT[name]), replace(request, features=features))


@every_unit
@settings(max_examples=6)
@given(
    channels=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 7), st.integers(2, 11)),
    out=st.sampled_from([9, 32, 48]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 30)),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(["u8", "s8"]),
    batch=st.integers(1, 2),
)
def test_pixels_that_are_not_filled_up(
    name: str, channels: int, kernel: tuple[int, int], out: int, size: tuple[int, int], stride: int, pads: Frame,
    bits: int, dtype: str, batch: int,
) -> None:  # fmt: skip
    """The last step of a row of taps moves left, and nothing behind the image is read."""
    unit = UNIT[name]
    run = channels * kernel[1]
    assume(run % unit.step == 0 or unit.step < run <= 8 * unit.step)
    window = Window(kernel, (stride, stride), pads)
    size = (max(size[0], kernel[0] - pads[0] - pads[2], 1), max(size[1], kernel[1] - pads[1] - pads[3], 1))
    x = TensorType(IntType.parse(dtype), (channels, *size), 1.0)
    request = request_for(conv(channels, out, window, bits=bits), x, "u8", batch=batch, unit=unit)
    dense = {**request.alternatives, "x0": replace(request.alternatives["x0"], multiple=1)}
    writes_what_the_interpreter_says(kernel_of(request, unit), replace(request, alternatives=dense))


@settings(max_examples=10)
@given(
    out=st.sampled_from([16, 24, 48, 64]),
    width=st.integers(3, 17),
    ratio=st.floats(0.001, 1.9) | st.sampled_from([1.0, 1.9999]),
    acc_ratio=st.floats(2.0**-14, 0.01),
    types=st.tuples(*[st.sampled_from(["u8", "s8", "u4", "s5"])] * 3),
    kernel=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_residuals_in_float32(
    out: int, width: int, ratio: float, acc_ratio: float, types: tuple[str, str, str], kernel: int, seed: int
) -> None:
    """With the ratios that networks have."""
    (*multiplier, factor), shift = to_dyadic([*np.linspace(acc_ratio, acc_ratio / 9, out), ratio])
    multipliers, factors = residual_multipliers(multiplier, [factor], shift)
    dtype, rng = IntType.parse(types[1]), np.random.default_rng(seed)
    rescale = Rescale(multipliers, shift, dtype.lo, dtype.hi, factors)
    weight, bias = rng.integers(-128, 128, (out, 20, kernel, kernel)), rng.integers(-3000, 3000, out)
    op = Conv2d(weight, 8, bias, rescale, Window((kernel, kernel), (1, 1), (kernel // 2,) * 4))
    x = TensorType(IntType.parse(types[0]), (20, 5, width), 1.0)
    request = request_for(op, x, types[1], residual=types[2])
    assert floors_of(request, VNNI) is not None or types[2] in ("u4", "s5")
    expected = writes_what_the_interpreter_says(name_of(op), request)
    assert len(np.unique(expected)) > 5, "not all of it is clipped"


@every_unit
@sweep
@given(
    groups=st.integers(1, 12),
    per_group=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    width=st.integers(3, 15),
    stride=st.integers(1, 2),
    bits=st.sampled_from([3, 8]),
    types=st.tuples(*[st.sampled_from(["u8", "s8"])] * 2),
    residual=st.booleans(),
)
def test_groups(
    name: str,
    groups: int,
    per_group: tuple[int, int],
    width: int,
    stride: int,
    bits: int,
    types: tuple[str, str],
    residual: bool,
) -> None:
    """Blocks of output channels that hold several groups, or parts of them."""
    channels, out = groups * per_group[0], groups * per_group[1]
    assume(out > 4)
    window = Window((3, 2), (stride, 1), (1, 1, 1, 0))
    op = conv(channels, out, window, bits=bits, groups=groups, output=types[1], residual=int(residual))
    x = TensorType(IntType.parse(types[0]), (channels, 5, width), 1.0)
    request = request_for(op, x, types[1], unit=UNIT[name])
    writes_what_the_interpreter_says(kernel_of(request, UNIT[name]), request)


@pytest.mark.parametrize(
    ("channels", "out", "size", "kernel", "what"),
    [
        (64, 320, (14, 14), 3, "blocks outermost, with prefetch"),
        (32, 144, (61, 47), 3, "the last block is one vector, rows in groups"),
        (512, 96, (30, 31), 1, "one long row, in groups"),
        (16, 64, (80, 80), 3, "blocks innermost, on threads"),
    ],
)
def test_work_large_enough_for_threads_and_groups(
    channels: int, out: int, size: tuple[int, int], kernel: int, what: str
) -> None:
    op = conv(channels, out, Window((kernel, kernel), pads=(kernel // 2,) * 4), shift=47)
    request = request_for(op, TensorType(IntType.parse("u8"), (channels, *size), 1.0), "u8")
    cut, script = Cut.of(request, VNNI, packed=False), offer_of(KERNEL[8], request).build().function.script()
    assert "T.parallel" in script, what
    assert (cut.tiling.groups == 0) == ("innermost" in what), what
    assert cut.shape.flat == ("long row" in what), what
    assert (cut.tiling.groups > 1) == ("groups" in what), what
    assert ("prefetch" in script) == (cut.tiling.groups > 0), what
    writes_what_the_interpreter_says(KERNEL[8], request)


@every_unit
@pytest.mark.parametrize("shift", [32, 33, 62])
@pytest.mark.parametrize("x", ["u8", "s8"])
@pytest.mark.parametrize("output", ["u8", "s8", "s2"])
def test_accumulators_at_their_bounds_and_the_largest_multiplier(name: str, shift: int, x: str, output: str) -> None:
    """Sums of one sign at the limits of 32 bits, once ending in a tie."""
    dtype, limits = IntType.parse(x), IntType.parse(output)
    most = (2**31 - 1) // (127 * dtype.magnitude)
    weight = np.full((16, 4, 1, most // 4), 127, np.int8)
    weight[::2] = -127
    rescale = Rescale(np.array([2**31 - 1, 2**30] * 8), shift, limits.lo, limits.hi)
    op = Conv2d(weight, 8, np.arange(16), rescale, Window((1, weight.shape[-1])))
    type = TensorType(dtype, (4, 1, weight.shape[-1]), 1.0)
    request = dot_request(op, [type], limits, [(0, 0, 0, 0)] * 2, batch=3, unit=UNIT[name])
    values = np.stack([np.full(type.shape, value) for value in (dtype.lo, dtype.hi, 1)]).astype(dtype.carrier)
    expected = writes_what_the_interpreter_says(kernel_of(request, UNIT[name]), request, [values])
    if shift < 62:
        assert {limits.lo, limits.hi} <= set(expected.ravel().tolist())


@every_unit
@pytest.mark.parametrize("output", ["u8", "s8", "u4"])
@pytest.mark.parametrize("out", [16, 48])
def test_multipliers_of_24_digits_are_rescaled_in_float32(name: str, output: str, out: int) -> None:
    op = conv(24, out, Window((3, 3), pads=(1, 1, 1, 1)), output=output, shift=35)
    op = replace(op, rescale=replace(op.rescale, multiplier=odd_multipliers(np.arange(out) * 2**21 + 3 * 2**26, 35)))
    request = request_for(op, TensorType(IntType.parse("u8"), (24, 9, 17), 1.0), output, unit=UNIT[name])
    assert in_float32(request)
    kernel = offer_of(kernel_of(request, UNIT[name]), request).build()
    assert "llvm.fma" in kernel.function.script()
    assert kernel.constants[2].dtype == np.float32
    expected = writes_what_the_interpreter_says(kernel_of(request, UNIT[name]), request)
    assert len(np.unique(expected)) > 8


@every_unit
def test_ties_round_up(name: str) -> None:
    """Every accumulator from -300 to 300 at three and a half bits of shift: halves go toward plus infinity."""
    for shift in (3, 33, 36):
        multiplier = 1 << (shift - 3) if shift < 35 else 1 << 30
        rescale = Rescale(np.full(16, multiplier), shift if shift < 35 else 33, -128, 127)
        op = Conv2d(np.ones((16, 4, 1, 1), np.int8), 8, np.full(16, -300), rescale, Window((1, 1)))
        type = TensorType(IntType.parse("u8"), (4, 1, 151), 1.0)
        values = np.minimum(np.arange(604).reshape(1, 1, 151, 4).transpose(0, 3, 1, 2) // 4, 255).astype(np.uint8)
        request = dot_request(op, [type], IntType.parse("s8"), [(0, 0, 0, 0)] * 2, unit=UNIT[name])
        writes_what_the_interpreter_says(kernel_of(request, UNIT[name]), request, [values])


@pytest.mark.parametrize("name", ["avx512bw", "avx2"])
@pytest.mark.parametrize(("weights", "x", "pairs"), [
    ((64, 64, -64, -64), "u8", True), ((127, 2, 0, 0), "u8", False), ((-128, -1, 0, 0), "u8", False),
    ((-128, 0, 0, 127), "u8", True), ((127, 127, -128, -128), "u7", True), ((127, 127, -128, -128), "s8", False),
])  # fmt: skip
def test_sums_of_two_products_never_saturate(name: str, weights: tuple[int, ...], x: str, pairs: bool) -> None:
    """``vpmaddubsw`` where its 16 bits are proved to hold every sum, once to the last; else ``vpmaddwd`` alone."""
    weight = np.tile(np.array(weights, np.int8), (16, 6)).reshape(16, 1, 1, 24).transpose(0, 3, 1, 2)
    op = Conv2d(weight, 8, np.zeros(16, np.int64), Rescale(np.full(16, 2**20), 28, -128, 127), Window((1, 1)))
    type = TensorType(IntType.parse(x), (24, 2, 5), 1.0)
    request = request_for(op, type, "s8", unit=UNIT[name])
    script = offer_of(kernel_of(request, UNIT[name]), request).build().function.script()
    assert ("pmadd.ub.sw" in script or "pmaddubs" in script) == pairs
    values = np.full((1, *type.shape), type.dtype.hi, type.dtype.carrier)
    writes_what_the_interpreter_says(kernel_of(request, UNIT[name]), request, [values])


@pytest.mark.parametrize("bits", [4, 8])
def test_four_bit_weights_need_no_instruction_of_their_own(bits: int) -> None:
    """Where GFNI is not there, as on Cascade Lake, halves of bytes are made by shifts."""
    op = conv(16, 48, Window((3, 3), pads=(1, 1, 1, 1)), bits=bits)
    request = request_for(op, TensorType(IntType.parse("u8"), (16, 5, 9), 1.0), "u8")
    without = replace(request, features=request.features - {"gfni"})
    for each, has in ((request, bits == 4), (without, False)):
        assert ("vgf2p8affineqb" in offer_of(name_of(op), each).build().function.script()) == has
        writes_what_the_interpreter_says(name_of(op), each)


@pytest.mark.parametrize(
    ("cpu", "taken"), [("haswell", 8), ("cascadelake", 4), ("icelake-server", 4), ("alderlake", 4)]
)
def test_weights_of_four_bits_are_unpacked_where_that_saves_more_than_a_tenth(cpu: str, taken: int) -> None:
    """With AVX2 alone, halves of bytes are made by shifts, and often."""
    machine = Machine.resolve(CPUS[cpu])
    unit = unit_of(machine.features)
    assert unit is not None
    op, x = conv(64, 64, Window((3, 3), pads=(1, 1, 1, 1)), bits=4), TensorType(IntType.parse("u8"), (64, 14, 14), 1.0)
    request = replace(request_for(op, x, "u8", unit=unit), features=machine.features)
    offers = {name: answer for name, answer in collect_offers(request).items() if isinstance(answer, Offer)}
    assert min(offers, key=lambda name: offers[name].cost) == f"conv2d_u8s{taken}s32_{unit.name}"


@pytest.mark.parametrize(("kernel", "frame"), [(1, 0), (3, 0), (3, 1)])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_choice_of_parameters_gives_the_same(kernel: int, frame: int, bits: int) -> None:
    op = conv(16, 80, Window((kernel, kernel), pads=(kernel // 2,) * 4), bits=bits)
    request = request_for(op, TensorType(IntType.parse("u8"), (16, 7, 13), 1.0), "u8", extra=(frame,) * 4)
    variants = some_variants(KERNEL[bits], request, 14)
    assert len({tuple(variant.parameters.items()) for variant in variants}) == 14
    for variant in variants:
        writes_what_the_interpreter_says(KERNEL[bits], request, variant=variant)


@every_unit
def test_the_kernels_own_choice_is_a_variant(name: str) -> None:
    op, x = conv(16, 80, Window((1, 1))), TensorType(IntType.parse("u8"), (16, 7, 13), 1.0)
    offer = offer_of(f"conv2d_u8s8s32_{name}", request_for(op, x, "u8", unit=UNIT[name]))
    assert offer.variants()[0].parameters == offer.parameters
    assert all(variant.parameters["groups"] <= 91 for variant in offer.variants())


def test_weights_of_four_bits_can_be_unpacked_for_a_price() -> None:
    op, x = conv(16, 64, Window((3, 3), pads=(1, 1, 1, 1)), bits=4), TensorType(IntType.parse("u8"), (16, 5, 9), 1.0)
    request = request_for(op, x, "u8")
    writes_what_the_interpreter_says(KERNEL[8], request)
    packed, unpacked = offer_of(KERNEL[4], request), offer_of(KERNEL[8], request)
    assert packed.cost < unpacked.cost
    assert (packed.weight_bits, unpacked.weight_bits) == (4, 8)
    assert 2 * packed.build().constants[0].nbytes == unpacked.build().constants[0].nbytes


def test_declines_are_sentences() -> None:
    op, x = conv(16, 20, Window((1, 1))), TensorType(IntType.parse("u8"), (16, 4, 4), 1.0)
    request = request_for(op, x, "u8")
    name = KERNEL[8]
    assert decline_of(name, replace(request, features=frozenset())) == (
        "needs avx512bw and avx512dq and avx512f and avx512vl and avx512vnni, which the CPU compiled for does not have"
    )
    assert decline_of(name, replace(request, target=TARGETS["nvidia/t4"])) == (
        "written for CPUs through LLVM, not for 'cuda'"
    )
    storages = request.alternatives
    narrow = {**storages, "y": replace(storages["y"], multiple=4)}
    assert decline_of(name, replace(request, alternatives=narrow)) == "writes whole vectors of 16 channels, not NHWC/4"
    odd = {**storages, "x0": replace(storages["x0"], multiple=1)}
    bytes_ = replace(request, inputs=(replace(x, shape=(35, 4, 4)),), alternatives=odd)
    assert decline_of(name, bytes_) == "reads 4 channels at once, or a row of taps of 5 to 32 bytes, not NHWC"
    signed = replace(request, inputs=(replace(x, dtype=IntType.parse("s8")),))
    assert decline_of(name, signed) == "reads and writes unsigned bytes, signed values at +128, not s8 in NHWC/16"
    many = decline_of(name, replace(request, batch=10_000_000))
    assert many == ("addresses elements by 32 bits, 10000000 samples of u8[16,4,4] are more; compile a smaller batch")
    clipped = replace(op, rescale=replace(op.rescale, lo=3))
    assert "its clip 3..255 leaves out" in decline_of(name, request_for(clipped, x, "u8"))
    assert decline_of(KERNEL[4], request) == "stores weights in 4 bits, these have 8"


def test_float32_is_proved_channel_by_channel_where_the_layer_as_a_whole_fails() -> None:
    """A multiplier with seven zeros at its end makes ties of large accumulators, which only the other channel has."""
    weight = np.zeros((16, 40, 3, 3), np.int64)
    weight[0], weight[1:, 0, 1, 1] = 127, 1
    multipliers = np.full(16, (1 << 23 | 1) << 7)
    multipliers[0] = 1 << 22 | 1
    op = Conv2d(weight, 8, np.zeros(16), Rescale(multipliers, 31, 0, 255), Window((3, 3), pads=(1, 1, 1, 1)))
    x = TensorType(IntType.parse("u8"), (40, 4, 5), 1.0)
    assert not float32_is_exact(op.rescale, op.bounds([x]))
    request = request_for(op, x, "u8")
    assert in_float32(request)
    writes_what_the_interpreter_says(KERNEL[8], request)
    writes_what_the_interpreter_says(KERNEL[8], request, [np.full((1, *x.shape), 255, np.uint8)])


def test_rows_of_17_pixels_are_two_tiles_where_no_residual_takes_registers() -> None:
    x = TensorType(IntType.parse("u8"), (16, 3, 17), 1.0)
    same = Window((3, 3), pads=(1, 1, 1, 1))
    assert Cut.of(request_for(conv(16, 32, same), x, "u8"), VNNI, packed=False).runs == ((1, 9), (1, 8))
    assert Cut.of(request_for(conv(16, 32, same, residual=1), x, "u8"), VNNI, packed=False).runs == ((2, 6), (1, 5))


def test_signed_inputs_leave_the_bias() -> None:
    """The offset's share is taken off modulo 2^32, as the accumulator counts."""
    op = conv(16, 16, Window((1, 1)))
    unsigned, signed = (
        offer_of(KERNEL[8], request_for(op, TensorType(IntType.parse(t), (16, 3, 3), 1.0), "u8")).build().constants[1]
        for t in ("u8", "s8")
    )
    sums = op.weight.reshape(16, -1).sum(axis=1, dtype=np.int64)
    assert np.array_equal(unsigned - signed, 128 * sums)


@pytest.mark.parametrize("name", UNIT)
def test_every_instruction_set_that_is_asked_for_is_one_of_llvms(name: str) -> None:
    assert machine_of(name).features >= UNIT[name].needs
    best = unit_of(machine_of(name).features)
    assert best is not None
    assert (best.name, name) == ("i8mm", "usdot") or best is UNIT[name], "all but what stands in for another are best"


@settings(max_examples=12)
@given(
    groups=st.sampled_from([8, 16, 32]), per_group=st.sampled_from([4, 8]),
    size=st.tuples(st.integers(3, 6), st.integers(3, 18)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)), kernel=st.integers(0, 1), bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(["u8", "s8"]), residual=st.booleans(), batch=st.integers(1, 2),
)  # fmt: skip
def test_groups_in_planes(
    groups: int, per_group: int, size: tuple[int, int], strides: tuple[int, int], kernel: int, bits: int, dtype: str,
    residual: bool, batch: int,
) -> None:  # fmt: skip
    """As on AMX, where 64 channels lie together, and a row's end is the next one's left padding."""
    channels, x_type = groups * per_group, IntType.parse(dtype)
    window = Window((1 + 2 * kernel,) * 2, strides, (kernel,) * 4)
    op = conv(channels, channels, window, bits=bits, groups=groups, output=dtype, residual=int(residual))
    x = TensorType(x_type, (channels, *size), 1.0)
    request = request_for(op, x, dtype, residual=dtype, batch=batch)
    offset = 128 if x_type.signed else 0
    planes = {
        name: Storage(block=64, multiple=64, frame=(2 - number, 0, 2, 1 + number), offset=offset)
        for number, name in enumerate(request.alternatives)
    }
    writes_what_the_interpreter_says(KERNEL[bits], replace(request, alternatives=planes))


def test_a_block_that_reads_two_planes_is_declined_and_so_is_a_layer_of_one_group() -> None:
    for groups, channels in ((1, 64), (2, 128)):
        x = TensorType(IntType.parse("u8"), (channels, 3, 5), 1.0)
        request = request_for(conv(channels, 48 * groups, Window((1, 1)), groups=groups), x, "u8")
        planes = dict.fromkeys(request.alternatives, Storage(block=64, multiple=64))
        reason = decline_of(KERNEL[8], replace(request, alternatives=planes))
        assert reason == "computes on channels last, not on NCHW64c/64"
