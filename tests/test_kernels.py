"""Kernels against the interpreter, over shapes that are chosen to be awkward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.backends.tvm.storage import channels_last, plan_storages
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import CompileError
from hawq_tvm.core.ir import Graph, IntType, Node, Operator, Rescale, TensorType, Window
from hawq_tvm.core.ops import Add, AvgPool2d, Concat, Conv2d, GlobalAvgPool2d, Linear, MaxPool2d, Requantize
from hawq_tvm.core.targets import TARGETS, Target
from hawq_tvm.kernels import KERNELS, Offer, Request, collect_offers, unit_of
from hawq_tvm.kernels.generic import conv2d
from hawq_tvm.kernels.generic.blocking import Blocking
from hawq_tvm.kernels.packing import pack_channel_blocks, pack_nibbles, unpack_nibbles

from .accesses import accesses_outside, shared_between_threads
from .builders import compiled, one_node_graph, random_integers, same, stored_wrongly
from .cpus import resolved

S8, U8, U4, S32 = (IntType.parse(text) for text in ("s8", "u8", "u4", "s32"))
STORAGES = ("canonical", "channels_last")
SSE = Target("llvm/nehalem", "llvm", "an x86 CPU without AVX, for tests", attributes={"mcpu": "nehalem"})
CPUS = [name for name, target in TARGETS.items() if target.gpu is None and target.cpu is None]
sweep = settings(max_examples=16, suppress_health_check=[HealthCheck.function_scoped_fixture])


def agrees(op: Operator, inputs: list[TensorType], output: IntType, folder: Path, **how: Any) -> None:
    """Compile one operator and compare every value with the interpreter, on extremes and noise."""
    graph_agrees(one_node_graph(op, inputs, output), folder, **how)


def graph_agrees(graph: Graph, folder: Path, **how: Any) -> CompiledModule:
    """Every value, and every byte of its storage: frames and channels that fill up are zero in each call."""
    module = compiled(graph, folder, **how)
    x = random_integers(graph.input_type, 3)
    expected = interpreter.run(graph, x)
    assert same(expected, module.values(x)) == []
    assert stored_wrongly(expected, module, x) == []
    return module


@given(st.lists(st.tuples(st.integers(-8, 7), st.integers(-8, 7)), min_size=1))
def test_nibbles_unpack_to_what_was_packed(pairs: list[tuple[int, int]]) -> None:
    low, high = (np.array(part, np.int8) for part in zip(*pairs, strict=True))
    packed = pack_nibbles(low, high)
    assert packed.dtype == np.uint8
    assert [part.tolist() for part in unpack_nibbles(packed)] == [low.tolist(), high.tolist()]


@given(groups=st.integers(1, 3), per_group=st.integers(1, 40), halves=st.integers(1, 2), lanes=st.sampled_from([4, 8]))
def test_channel_blocks_hold_every_channel_once(groups: int, per_group: int, halves: int, lanes: int) -> None:
    values = np.arange(1, groups * per_group * 2 + 1).reshape(groups * per_group, 2)
    blocks = pack_channel_blocks(values, groups, halves, lanes)
    for channel in range(groups * per_group):
        group, within = divmod(channel, per_group)
        block, rest = divmod(within, halves * lanes)
        assert blocks[group, block, :, rest // lanes, rest % lanes].tolist() == values[channel].tolist()
    assert np.count_nonzero(blocks) == values.size, "the rest is zeros"


@given(
    channels=st.integers(1, 80),
    width=st.integers(1, 70),
    bits=st.sampled_from([128, 256, 512]),
    groups=st.integers(1, 4),
)
def test_blockings_are_sound(channels: int, width: int, bits: int, groups: int) -> None:
    blocking = Blocking.choose(channels, width, bits, groups=groups)
    assert 1 <= blocking.tile <= max(16, width)
    assert blocking.halves in (1, 2)
    if groups > 1:
        assert channels % blocking.block == 0


@sweep
@given(
    channels=st.integers(1, 9),
    out_channels=st.sampled_from([1, 2, 3, 5, 10, 16, 17, 31, 33, 48, 65]),
    size=st.tuples(st.integers(5, 12), st.integers(5, 19)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    weight_bits=st.sampled_from([2, 4, 5, 8]),
    residual=st.sampled_from([None, "one", "each"]),
    batch=st.integers(1, 2),
    target=st.sampled_from(sorted(CPUS)),
    storages=st.sampled_from(STORAGES),
    seed=st.integers(0, 99),
)
def test_conv2d(
    tmp_path: Path, channels: int, out_channels: int, size: tuple[int, int], kernel: tuple[int, int],
    strides: tuple[int, int], pads: tuple[int, int, int, int], dilations: tuple[int, int], weight_bits: int,
    residual: str | None, batch: int, target: str, storages: str, seed: int,
) -> None:  # fmt: skip
    op = random_conv(channels, out_channels, 1, Window(kernel, strides, pads, dilations), weight_bits, residual, seed)
    x = TensorType(S8 if seed % 2 else U8, (channels, *size), 1.0)
    graph_agrees(conv_graph(op, x, U8 if seed % 3 else S8), tmp_path, batch=batch, target=target, storages=storages)


@sweep
@given(
    groups=st.integers(2, 8),
    per_group=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 4, 6, 9, 12, 20])),
    width=st.integers(3, 20),
    weight_bits=st.sampled_from([3, 8]),
    residual=st.sampled_from([None, "one"]),
    target=st.sampled_from(sorted(CPUS)),
    storages=st.sampled_from(STORAGES),
    seed=st.integers(0, 99),
)
def test_grouped_and_depthwise_conv2d(
    tmp_path: Path, groups: int, per_group: tuple[int, int], width: int, weight_bits: int, residual: str | None,
    target: str, storages: str, seed: int,
) -> None:  # fmt: skip
    window = Window((3, 2), (1, 1 + seed % 2), (1, 1, 1, 0), (1 + seed % 2, 1))
    channels, out_channels = groups * per_group[0], groups * per_group[1]
    op = random_conv(channels, out_channels, groups, window, weight_bits, residual, seed)
    x = TensorType(S8 if seed % 2 else U8, (channels, 6, width), 1.0)
    graph_agrees(conv_graph(op, x, U8), tmp_path, target=target, storages=storages)


@settings(max_examples=60)
@given(
    channels=st.integers(1, 9),
    out_channels=st.sampled_from([1, 3, 16, 17, 33, 48, 65]),
    size=st.tuples(st.integers(5, 12), st.integers(5, 40)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    vector_bits=st.sampled_from([128, 256, 512]),
    storages=st.sampled_from(STORAGES),
)
def test_convolutions_stay_inside_their_buffers(
    channels: int, out_channels: int, size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int],
    pads: tuple[int, int, int, int], dilations: tuple[int, int], vector_bits: int, storages: str,
) -> None:  # fmt: skip
    """Tiles read more columns than the window asks for: each of them must be there, whatever memory holds behind."""
    op = random_conv(channels, out_channels, 1, Window(kernel, strides, pads, dilations), 8, "one", 0)
    graph = conv_graph(op, TensorType(U8, (channels, *size), 1.0), U8)
    assert functions_outside(graph, vector_bits, storages) == []


def functions_outside(graph: Graph, vector_bits: int, storages: str) -> list[str]:
    """What the kernels and conversions of a network access outside their buffers."""
    return [found for function in functions_of(graph, vector_bits, storages) for found in accesses_outside(function)]


def functions_of(graph: Graph, vector_bits: int, storages: str) -> list[Any]:
    """Every PrimFunc of a network."""
    plan = plan_storages(graph, TARGETS["llvm"], vector_bits, batch=2, palette=storages)
    offers = [*(plan.offers[name] for name in plan.kernels), *(offer for _, offer in plan.converters)]
    return [offer.build().function for offer in offers]


@pytest.mark.parametrize(
    ("op", "channels"),
    [
        (GlobalAvgPool2d(Rescale([2**30], 41, 0, 255)), 40),
        (MaxPool2d(Window((3, 3), (2, 2), (1, 1, 1, 1))), 40),
        (AvgPool2d(Window((2, 2)), Rescale([[2**27]], 30, 0, 255)), 40),
        (Conv2d(np.ones((32, 40, 3, 3)), 8, np.ones(32), Rescale([2**29] * 32, 40, 0, 255), Window((3, 3))), 40),
    ],
    ids=["global", "max", "average", "convolution"],
)
def test_threads_share_no_accumulators(op: Operator, channels: int) -> None:
    """A race that the results need not show: each thread must have accumulators of its own."""
    graph = one_node_graph(op, [TensorType(U8, (channels, 60, 60), 1.0)], U8)
    functions = functions_of(graph, 512, "channels_last")
    assert any("T.parallel" in function.script() for function in functions)
    assert [shared_between_threads(function) for function in functions] == [[]] * len(functions)


def test_the_proof_sees_a_read_past_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its dilation the padded input is too narrow for the last tile: memory behind it happens to be there."""
    window = Window((1, 3), pads=(0, 2, 0, 2), dilations=(1, 2))
    graph = conv_graph(random_conv(4, 16, 1, window, 8, None, 0), TensorType(U8, (4, 3, 17), 1.0), U8)
    assert functions_outside(graph, 512, "canonical") == []
    real = conv2d._source

    def without_dilation(x: Any, op: Conv2d, tiled_width: int, shape: tuple[int, ...]) -> Any:
        return real(x, replace(op, window=replace(op.window, dilations=(1, 1))), tiled_width, shape)

    monkeypatch.setattr(conv2d, "_source", without_dilation)
    (found,) = functions_outside(graph, 512, "canonical")
    assert "of 21" in found


def random_conv(
    channels: int, out: int, groups: int, window: Window, bits: int, residual: str | None, seed: int
) -> Conv2d:
    rng = np.random.default_rng(seed)
    limit = 1 << (bits - 1)
    factors = None if residual is None else rng.integers(0, 2**31, out if residual == "each" else 1)
    rescale = Rescale(rng.integers(0, 2**31, out), 30 + seed % 12, 0, 100, factors)
    weight = rng.integers(-limit, limit, (out, channels // groups, *window.kernel))
    return Conv2d(weight, bits, rng.integers(-3000, 3000, out), rescale, window, groups)


def conv_graph(op: Conv2d, x: TensorType, output: IntType) -> Graph:
    """The convolution, after another one that makes its residual where it has one."""
    if op.rescale.residual is None:
        return one_node_graph(op, [x], output)
    rescale = replace(op.rescale, shift=op.rescale.shift - 2, lo=-128, hi=127, residual=None)
    first = one_node_graph(replace(op, rescale=rescale), [x], S8, name="branch")
    shape = first.node("branch").type.shape
    node = Node("layer", op, ("x", "branch"), TensorType(output, shape, 1.0))
    graph = Graph("test", "x", x, (*first.nodes, node), "layer")
    graph.check()
    return graph


@pytest.mark.parametrize("target", CPUS)
@pytest.mark.parametrize(("features", "outputs", "bits"), [(1, 1, 8), (7, 10, 4), (64, 33, 8), (130, 100, 3)])
def test_linear(tmp_path: Path, target: str, features: int, outputs: int, bits: int) -> None:
    rng = np.random.default_rng(features)
    limit = 1 << (bits - 1)
    weight, bias = rng.integers(-limit, limit, (outputs, features)), rng.integers(-999, 999, outputs)
    op = Linear(weight, bits, bias, Rescale(rng.integers(0, 2**31, outputs), 31, -(2**31) + 1, 2**31 - 1))
    agrees(op, [TensorType(U8, (features,), 1.0)], S32, tmp_path, target=target, batch=2)


@pytest.mark.parametrize("storages", STORAGES)
def test_work_large_enough_for_threads(tmp_path: Path, storages: str) -> None:
    from hawq_tvm.kernels.generic.parallel import MIN_ELEMENTS, MIN_MACS

    op = random_conv(32, 48, 1, Window((3, 3), pads=(1, 1, 1, 1)), 8, None, 1)
    x = TensorType(U8, (32, 15, 15), 1.0)
    assert op.macs(TensorType(U8, op.output_shape([x]), 1.0)) > MIN_MACS
    agrees(op, [x], U8, tmp_path, storages=storages)
    large = TensorType(U8, (40, 60, 60), 1.0)
    assert np.prod(large.shape) > MIN_ELEMENTS
    agrees(MaxPool2d(Window((3, 3), (2, 2), (1, 1, 1, 1))), [large], U8, tmp_path, storages=storages)
    agrees(GlobalAvgPool2d(Rescale([2**30], 41, 0, 255)), [large], U8, tmp_path, storages=storages)
    agrees(Requantize(Rescale([2**30], 33, 0, 15)), [large], U4, tmp_path, storages=storages)


OTHERS: dict[str, tuple[Operator, list[TensorType], IntType]] = {
    "requantize": (Requantize(Rescale([2**31 - 1], 33, -8, 7)), [TensorType(S8, (5, 3, 7), 1.0)], IntType.parse("s4")),
    "requantize a vector": (Requantize(Rescale([3], 2, -128, 127)), [TensorType(S8, (9,), 1.0)], S8),
    "max pool": (MaxPool2d(Window((3, 2), (2, 2), (1, 0, 1, 1))), [TensorType(S8, (3, 9, 8), 1.0)], S8),
    "max pool, unsigned, dilated": (
        MaxPool2d(Window((2, 3), (1, 2), (1, 1, 0, 2), (2, 2))), [TensorType(U8, (3, 9, 8), 1.0)], U8,
    ),
    "average pool": (
        AvgPool2d(Window((3, 3), (2, 1), (1, 1, 1, 1)), Rescale([[2**27]], 30, -128, 127)),
        [TensorType(S8, (4, 7, 6), 1.0)], S8,
    ),
    "average pool by position": (
        AvgPool2d(
            Window((2, 2), (2, 2), (1, 1, 0, 0)),
            Rescale(np.random.default_rng(0).integers(0, 2**30, (4, 3)), 30, 0, 255),
        ),
        [TensorType(U8, (4, 7, 6), 1.0)], U8,
    ),
    "global average pool": (GlobalAvgPool2d(Rescale([2**30], 35, 0, 255)), [TensorType(U8, (19, 7, 5), 1.0)], U8),
}  # fmt: skip


@pytest.mark.parametrize("storages", STORAGES)
@pytest.mark.parametrize("target", CPUS)
@pytest.mark.parametrize("name", OTHERS)
def test_operators_without_weights(name: str, target: str, storages: str, tmp_path: Path) -> None:
    op, inputs, output = OTHERS[name]
    agrees(op, inputs, output, tmp_path, target=target, batch=2, storages=storages)
    assert functions_outside(one_node_graph(op, inputs, output), 256, storages) == []


@pytest.mark.parametrize("storages", STORAGES)
@pytest.mark.parametrize("target", CPUS)
def test_add_and_concat(target: str, storages: str, tmp_path: Path) -> None:
    a, b, how = TensorType(S8, (3, 4, 5), 1.0), TensorType(U8, (3, 4, 5), 1.0), {"target": target, "storages": storages}
    agrees(Add(Rescale([2**31 - 1, 3 * 2**28], 31, -128, 127)), [a, b], S8, tmp_path, **how)
    agrees(Concat(Rescale([2**30, 2**29, 2**30], 30, -128, 127)), [a, b, a], S8, tmp_path, **how)


def answers_for(op: Operator, inputs: list[TensorType], output: IntType, target: Target = TARGETS["llvm"]) -> Any:
    """Every kernel's answer to one operator, channels last in play."""
    graph = one_node_graph(op, inputs, output)
    node = graph.node("layer")
    return collect_offers(Request(node, tuple(inputs), 1, target, 512, channels_last(graph, 16)))


@pytest.mark.parametrize(
    ("op", "inputs", "output", "kernel", "reason"),
    [
        (
            MaxPool2d(Window((3, 3), pads=(1, 1, 1, 1))), [TensorType(S8, (4, 6, 6), 1.0)], S8,
            "max_pool2d_generic_nhwc", "its padding is the frame's zeros, which are not the least values of s8",
        ),
        (
            Conv2d(np.ones((10, 4, 1, 1)), 8, np.ones(10), Rescale([1] * 10, 1, 5, 9), Window((1, 1))),
            [TensorType(U8, (4, 6, 6), 1.0)], U8,
            "conv2d_x8w8s32_generic_nhwc", "channels that fill up hold zero, which its clip 5..9 leaves out",
        ),
        (
            AvgPool2d(Window((2, 2)), Rescale([[1]], 1, 5, 9)), [TensorType(U8, (3, 6, 6), 1.0)], U8,
            "avg_pool2d_generic_nhwc", "channels that fill up hold zero, which its clip 5..9 leaves out",
        ),
        (
            Conv2d(np.ones((32, 4, 1, 1)), 8, np.ones(32), Rescale([1] * 32, 1, 0, 9), Window((1, 1)), 8),
            [TensorType(U8, (32, 6, 6), 1.0)], U8,
            "conv2d_x8w8s32_generic_nhwc", "groups of 4 channels of 32 do not fill half a vector each",
        ),
        (
            Conv2d(np.ones((8, 4, 6, 6)), 8, np.ones(8), Rescale([1] * 8, 1, 0, 9), Window((6, 6))),
            [TensorType(U8, (4, 6, 6), 1.0)], U8,
            "conv2d_x8w8s32_generic_nhwc", "computes on channels last, in which 'layer' is not in play",
        ),
    ],
)  # fmt: skip
def test_channels_last_declines_with_a_sentence(
    op: Operator, inputs: list[TensorType], output: IntType, kernel: str, reason: str, tmp_path: Path
) -> None:
    assert answers_for(op, inputs, output)[kernel] == reason
    agrees(op, inputs, output, tmp_path, storages="channels_last")


@pytest.mark.parametrize("cpu", ["nehalem", "haswell", "skylake-avx512"])
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize(
    ("groups", "channels", "out"),
    [(1, 5, 48), (1, 16, 20), (12, 12, 12), (35, 35, 35), (2, 32, 32), (4, 12, 64)],
    ids=["three halves", "filled up", "depthwise", "depthwise, ragged", "grouped", "grouped, other inputs"],
)
def test_channels_last_convolutions_of_every_kind(
    groups: int, channels: int, out: int, weight_bits: int, cpu: str, tmp_path: Path
) -> None:
    window = Window((3, 2), (1, 2), (1, 1, 2, 0), (2, 1))
    graph = conv_graph(
        random_conv(channels, out, groups, window, weight_bits, "each", groups),
        TensorType(S8, (channels, 9, 31), 1.0),
        S8,
    )
    machine = Machine.resolve(SSE) if cpu == "nehalem" else resolved(cpu)
    module = graph_agrees(graph, tmp_path, storages="channels_last", target=machine.target)
    unit = unit_of(machine.features)
    generic = f"conv2d_x8w{weight_bits}s32_generic_nhwc"
    for kernel in module.info.kernels.values():
        assert kernel == generic or (unit is not None and kernel.endswith(f"_{unit.name}"))
    assert (unit is None) == (cpu == "nehalem")
    assert functions_outside(graph, 512, "channels_last") == []


def test_a_frame_is_as_wide_as_its_widest_reader_and_all_readers_share_it(tmp_path: Path) -> None:
    x = TensorType(U8, (5, 8, 8), 1.0)
    stem = one_node_graph(random_conv(5, 16, 1, Window((1, 1)), 8, None, 1), [x], U8, name="stem").node("stem")
    left, right = Window((3, 3), pads=(1, 0, 1, 2)), Window((5, 5), (2, 2), pads=(2, 1, 0, 1))
    nodes = [stem]
    for name, window in (("left", left), ("right", right)):
        op = random_conv(16, 24, 1, window, 8, None, 2)
        nodes.append(Node(name, op, ("stem",), TensorType(U8, op.output_shape([stem.type]), 1.0)))
    nodes.append(
        Node("end", GlobalAvgPool2d(Rescale([2**30], 34, 0, 255)), ("right",), TensorType(U8, (24, 1, 1), 1.0))
    )
    graph = Graph("two readers", "x", x, tuple(nodes), "end")
    graph.check()
    module = graph_agrees(graph, tmp_path, storages="channels_last", target=resolved("cascadelake").target)
    assert str(module.info.values["stem"].storage) == "NHWC/16 frame 2,1,1,2"
    assert str(module.info.values["left"].storage) == "NHWC/16"


def test_channels_last_is_chosen_where_it_costs_less_and_the_other_kernel_says_what_it_offered() -> None:
    """Three convolutions of one pixel share one conversion; one of few pixels would not pay for it."""
    x = TensorType(U8, (32, 28, 28), 1.0)
    nodes: list[Node] = []
    for index in range(3):
        op = random_conv(32, 32, 1, Window((1, 1)), 8, None, index)
        nodes.append(Node(f"conv{index}", op, (nodes[-1].name if nodes else "x",), TensorType(U8, (32, 28, 28), 1.0)))
    nodes.append(
        Node("pool", GlobalAvgPool2d(Rescale([2**30], 40, 0, 255)), ("conv2",), TensorType(U8, (32, 1, 1), 1.0))
    )
    graph = Graph("chain", "x", x, tuple(nodes), "pool")
    graph.check()
    plan = plan_storages(graph, TARGETS["llvm"], 512, batch=1)
    assert plan.kernels["conv1"] == "conv2d_x8w8s32_generic_nhwc"
    assert len(plan.conversions) == 1
    canonical, nhwc = plan_storages(graph, TARGETS["llvm"], 512, batch=1, palette="canonical"), plan.offers["conv1"]
    (other,) = (item.reason for item in plan.declines["conv1"] if item.kernel == "conv2d_x8w8s32_generic")
    assert other == (
        f"offers NCHW at {canonical.offers['conv1'].cost:.1f} us; NHWC/16 at {nhwc.cost:.1f} us was chosen for the "
        "whole network, conversions counted"
    )
    assert plan.cost < canonical.cost
    small = one_node_graph(random_conv(32, 8, 1, Window((1, 1)), 8, None, 0), [replace(x, shape=(32, 4, 4))], U8)
    assert set(plan_storages(small, TARGETS["llvm"], 512, batch=1).kernels.values()) == {"conv2d_x8w8s32_generic"}


def still(multipliers: int | tuple[int, int]) -> Rescale:
    """Multipliers of 0, as a ratio under 2^-63 has: every value becomes 0."""
    return Rescale(np.zeros(multipliers), 62, -128, 127)


IMAGE, VECTOR = TensorType(S8, (5, 6, 7), 1.0), TensorType(S8, (9,), 1.0)
STILL: dict[str, tuple[Operator, list[TensorType]]] = {
    "convolution": (Conv2d(np.ones((6, 5, 3, 3)), 4, np.ones(6), still(6), Window((3, 3))), [IMAGE]),
    "linear": (Linear(np.ones((6, 9)), 8, np.ones(6), still(6)), [VECTOR]),
    "requantize": (Requantize(still(1)), [IMAGE]),
    "add": (Add(still(2)), [IMAGE, replace(IMAGE, dtype=U8)]),
    "concatenation": (Concat(still(2)), [IMAGE, replace(IMAGE, dtype=U8)]),
    "average pool": (AvgPool2d(Window((2, 2)), still((1, 1))), [IMAGE]),
    "global average pool": (GlobalAvgPool2d(still(1)), [IMAGE]),
    "a clip to one value": (GlobalAvgPool2d(Rescale([2**30], 35, 5, 5)), [IMAGE]),
}


@pytest.mark.parametrize("storages", STORAGES)
@pytest.mark.parametrize("name", STILL)
def test_what_a_compiler_could_fold_away_still_compiles(name: str, storages: str, tmp_path: Path) -> None:
    op, inputs = STILL[name]
    agrees(op, inputs, S8, tmp_path, storages=storages)


def test_four_bit_weights_take_the_packed_kernel_and_stay_packed() -> None:
    op = random_conv(8, 32, 1, Window((3, 3)), 4, None, 0)
    x = TensorType(U8, (8, 9, 9), 1.0)
    node = one_node_graph(op, [x], U8).node("layer")
    answers = collect_offers(Request(node, (x,), 1, TARGETS["llvm"], 512))
    (offer,) = (answer for answer in answers.values() if isinstance(answer, Offer))
    assert offer is answers["conv2d_x8w4s32_generic"]
    assert answers["conv2d_x8w8s32_generic"] == "stores weights in 8 bits, these have 4 and stay packed"
    built = offer.build()
    assert built.constants[0].dtype == np.uint8
    assert built.constants[0].size == op.weight.size / 2


def test_declines_are_sentences_and_their_table_is_the_error() -> None:
    op = random_conv(8, 32, 1, Window((3, 3)), 8, None, 0)
    x = TensorType(U8, (8, 9, 9), 1.0)
    node = one_node_graph(op, [x], U8, name="features.3").node("features.3")
    answers = collect_offers(Request(node, (x,), 1, TARGETS["llvm"], 512))
    assert isinstance(answers["conv2d_x8w8s32_generic"], Offer)
    assert answers["conv2d_x8w4s32_generic"] == "stores weights in 4 bits, these have 8"
    assert answers["add_generic"] == "computes add, not conv2d"
    elsewhere = Target("moon", "hexagon", "a machine that no kernel is written for")
    with pytest.raises(CompileError, match=r"no kernel takes layer 'features.3' \(conv2d\) on target 'moon'") as caught:
        collect_offers(Request(node, (x,), 1, elsewhere, 512))
    assert all(kernel.name in str(caught.value) for kernel in KERNELS)
