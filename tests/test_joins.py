"""Concatenations written in place: which branches are, that every kernel can, and whole networks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm

from hawq_tvm.backends.tvm.joins import join_branches
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.storage import channels_last, plan_storages
from hawq_tvm.core import interpreter
from hawq_tvm.core.ir import Graph, IntType, Node, Operator, Rescale, TensorType, Window
from hawq_tvm.core.ops import Add, AvgPool2d, Concat, Conv2d, MaxPool2d, PadChannels, Requantize
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import ConvertRequest, Offer
from hawq_tvm.kernels.generic.convert import CONVERT_GENERIC

from .accesses import accesses_outside
from .builders import compiled, random_integers, same, stored_wrongly
from .cpus import HOST, lacking, machine_of
from .dot_kernels import decline_of, dot_request, offer_of, run_guarded, writes_what_the_interpreter_says
from .test_dot_conv2d import conv

POISON = 0x55
SAME = Window((3, 3), pads=(1, 1, 1, 1))
ONE = 1 << 30


class Network:
    """Nodes one after the other; sizes stay."""

    def __init__(self, dtype: str = "u8", channels: int = 16) -> None:
        self.dtype = IntType.parse(dtype)
        self.input = TensorType(self.dtype, (channels, 7, 9), 1.0)
        self.nodes: list[Node] = []

    def add(self, name: str, op: Operator, *inputs: str) -> str:
        types = self.graph(name).types
        shape = op.output_shape([types[x] for x in inputs])
        self.nodes.append(Node(name, op, inputs, TensorType(self.dtype, shape, 1.0)))
        return name

    def conv(self, name: str, x: str, out: int, window: Window = SAME) -> str:
        op = conv(self.graph(name).types[x].shape[0], out, window, output=str(self.dtype), odd=True, seed=len(name))
        return self.add(name, op, x)

    def concat(self, name: str, *inputs: str, multipliers: Sequence[int] = ()) -> str:
        values = np.array(multipliers or [ONE] * len(inputs))
        return self.add(name, Concat(Rescale(values, 30, self.dtype.lo, self.dtype.hi)), *inputs)

    def graph(self, output: str) -> Graph:
        return Graph("joins", "x", self.input, tuple(self.nodes), output)


def nested(dtype: str) -> Graph:
    """A concatenation within another one, whose other branches are a pool with a scale of its own, and a narrow one."""
    net = Network(dtype)
    net.conv("a", "x", 32, Window((1, 1)))
    net.conv("b", "x", 16)
    net.concat("inner", "a", "b")
    net.add("pool", MaxPool2d(Window((3, 3), pads=(1, 1, 1, 1))), "x")
    net.conv("narrow", "x", 24)
    net.concat("outer", "inner", "pool", "narrow", multipliers=[ONE, ONE * 3 // 4 + 1, ONE])
    net.conv("last", "outer", 16)
    return net.graph("last")


def joined(graph: Graph) -> dict[str, str]:
    return join_branches(graph, channels_last(graph, 16, signed_offset=128))[1]


@pytest.mark.parametrize("dtype", ["u8", "s8"])
def test_branches_lie_where_the_whole_has_them(dtype: str) -> None:
    graph = nested(dtype)
    before = channels_last(graph, 16, signed_offset=128)
    storages, arrays = join_branches(graph, before)
    assert arrays == dict.fromkeys(["outer", "inner", "a", "b", "narrow"], "outer")
    offset = 128 if dtype == "s8" else 0
    whole = Storage("NHWC", multiple=16, frame=(1, 1, 1, 1), offset=offset)
    assert storages["outer"] == whole and storages["pool"] == before["pool"]
    assert storages["inner"] == replace(whole, before=0, after=48)
    assert storages["a"] == replace(whole, before=0, after=64)
    assert storages["b"] == replace(whole, before=32, after=48)
    assert storages["narrow"] == replace(whole, before=64)  # 24 channels, filled up to 32


def reads_elsewhere(net: Network) -> None:
    net.conv("a", "x", 32)
    net.conv("b", "a", 16)
    net.concat("y", "a", "b")


def rescaled(net: Network) -> None:
    net.conv("a", "x", 32)
    net.conv("b", "x", 16)
    net.concat("y", "a", "b", multipliers=[ONE - 1, ONE])


def twice(net: Network) -> None:
    net.conv("a", "x", 32)
    net.conv("b", "x", 16)
    net.concat("y", "a", "a", "b")


def too_wide_when_filled_up(net: Network) -> None:
    """24 channels, stored as 32, would reach over the 8 behind them."""
    net.conv("a", "x", 24)
    net.conv("b", "x", 8)
    net.concat("y", "a", "b")


def filled_up_further(net: Network) -> None:
    """The last branch fills up 3 channels to 4; the 19 of the result are 32."""
    net.conv("b", "x", 16)
    net.conv("a", "x", 3)
    net.concat("y", "b", "a")


@pytest.mark.parametrize("make", [filled_up_further, reads_elsewhere, rescaled, twice, too_wide_when_filled_up])
def test_a_branch_that_is_no_part_lies_apart(make: object) -> None:
    net = Network()
    make(net)  # type: ignore[operator]
    net.conv("last", "y", 16)
    assert joined(net.graph("last")) == {"y": "y", "b": "y"}


def test_a_clipped_branch_lies_apart() -> None:
    net = Network()
    net.conv("a", "x", 32)
    net.conv("b", "x", 16)
    net.add("y", Concat(Rescale(np.array([ONE, ONE]), 30, 0, 200)), "a", "b")
    net.conv("last", "y", 16)
    assert joined(net.graph("last")) == {}


def test_the_output_lies_apart() -> None:
    net = Network()
    net.conv("a", "x", 32)
    net.conv("b", "x", 16)
    net.concat("y", "a", "b")
    assert joined(net.graph("a")) == {"y": "y", "b": "y"}


def test_what_lies_in_planes_is_not_joined() -> None:
    graph = nested("u8")
    planes = {name: Storage(block=64, multiple=64) for name in graph.types}
    assert join_branches(graph, planes) == (planes, {})


@pytest.mark.parametrize("dtype", ["u8", "u4"])
def test_a_gpu_whose_kernels_know_no_parts_is_given_none(dtype: str) -> None:
    machine = Machine.resolve(TARGETS["nvidia/t4"])
    plan = plan_storages(nested(dtype), machine.target, machine.vector_bits, batch=1, palette="channels_last")
    assert {plan.storages[name].order for name in ("a", "b", "inner", "outer")} == {"NHWC"}
    assert [name for name, storage in plan.storages.items() if storage.is_part] == []
    assert plan.arrays == {}


@pytest.mark.parametrize("storages", ["all", "channels_last", "canonical"])
@pytest.mark.parametrize("dtype", ["u8", "s8"])
def test_networks_are_exact(dtype: str, storages: str, tmp_path: Path) -> None:
    """Every value, those that no call makes as well, and every stored byte."""
    graph = nested(dtype)
    x = random_integers(graph.input_type, 3)
    expected = interpreter.run(graph, x)
    module = compiled(graph, tmp_path, batch=2, storages=storages)
    assert same(expected, module.values(x)) == []
    assert stored_wrongly(expected, module, x) == []
    assert np.array_equal(module.run(x), expected[graph.output])
    if storages == "channels_last":
        assert module.info.joins == {"inner": "b"}
        assert module.info.kernels["inner"] == "concat_in_place" and "inner" not in module.info.calls
        assert module.info.kernels["outer"] in ("concat_avx512vnni", "concat_generic_nhwc")


def test_a_concatenation_of_parts_alone_takes_no_call_and_no_memory_of_its_own() -> None:
    net = Network()
    for name, channels in (("a", 32), ("b", 16), ("c", 64)):
        net.conv(name, "x", channels)
    net.concat("y", "a", "b", "c")
    net.conv("last", "y", 16)
    lowered = lower(net.graph("last"), TARGETS["llvm"], storages="channels_last")
    assert lowered.joins == {"y": "c"}
    assert "y" not in lowered.calls and lowered.plan.kernels["y"] == "concat_in_place"
    types, y = net.graph("last").types, lowered.plan.storages["y"]
    framed = Storage("NHWC", multiple=16, frame=(1, 1, 1, 1)).size_bytes(types["x"], 1)
    output = Storage().size_bytes(types["last"], 1)
    assert lowered.planned_bytes <= y.size_bytes(types["y"], 1) + framed + output


# Kernels that write a part


def average() -> AvgPool2d:
    return AvgPool2d(SAME, Rescale(np.array([[(1 << 27) + 1]]), 30, 0, 255))


OPERATORS: dict[str, tuple[Operator, int, tuple[str, ...]]] = {
    "dense": (conv(16, 48, SAME), 1, ("conv2d_u8s8s32_avx512vnni", "conv2d_x8w8s32_generic_nhwc")),
    "dense, 4 bits": (conv(16, 24, SAME, bits=4), 1, ("conv2d_u8s4s32_avx512vnni", "conv2d_x8w4s32_generic_nhwc")),
    "dense, by fewer products": (conv(32, 48, SAME), 1, ("conv2d_winograd_u8s8s32_avx512vnni",)),
    "pointwise": (conv(16, 48, Window((1, 1))), 1, ("conv2d_u8s8s32_avx512vnni", "conv2d_x8w8s32_generic_nhwc")),
    "depthwise": (conv(16, 16, SAME, groups=16), 1, ("conv2d_depthwise_u8s8s32_avx512vnni",)),
    "max pool": (MaxPool2d(SAME), 1, ("max_pool2d_avx512vnni", "max_pool2d_generic_nhwc")),
    "average pool": (average(), 1, ("avg_pool2d_avx512vnni", "avg_pool2d_generic_nhwc")),
    "sum": (
        Add(Rescale(np.array([1 << 29, 1 << 28]), 30, 0, 255)), 2, ("add_avx512vnni", "add_generic_nhwc")
    ),
    "requantize": (
        Requantize(Rescale(np.array([1 << 29]), 30, 0, 255)), 1, ("requantize_avx512vnni", "requantize_generic_nhwc")
    ),
    "channels of zeros": (PadChannels(3, 7), 1, ("pad_channels_generic_nhwc",)),
    "concatenation": (
        Concat(Rescale(np.array([ONE, ONE // 3]), 30, 0, 255)), 2, ("concat_avx512vnni", "concat_generic_nhwc")
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [(16, 0), (0, 32), (24, 8)])
@pytest.mark.parametrize("frame", [(0, 0, 0, 0), (1, 2, 0, 3)])
@pytest.mark.parametrize("case", OPERATORS)
def test_kernels_write_a_part_and_leave_the_rest(
    case: str, frame: tuple[int, int, int, int], before: int, after: int
) -> None:
    op, inputs, names = OPERATORS[case]
    channels = op.weight.shape[1] * op.groups if isinstance(op, Conv2d) else 16
    x = TensorType(IntType.parse("u8"), (channels, 5, 9), 1.0)
    around = (1, 1, 1, 1) if case not in ("pointwise",) or any(frame) else (0, 0, 0, 0)
    request = dot_request(op, [x] * inputs, x.dtype, [*[around] * inputs, frame], batch=2)
    storage = replace(request.alternatives["y"], before=before, after=after)
    request = replace(request, alternatives={**request.alternatives, "y": storage})
    for name in names:
        writes_what_the_interpreter_says(name, request)


@pytest.mark.parametrize("dtype", ["u8", "s8"])
def test_branches_apart_are_rescaled_into_their_places(dtype: str) -> None:
    """Those in place are not looked at; the last one's fill is written."""
    types = [TensorType(IntType.parse(dtype), (channels, 3, 5), 1.0) for channels in (32, 17, 16, 40)]
    law = Rescale(np.array([ONE, ONE // 3, ONE, ONE // 2 + 1]), 30, types[0].dtype.lo, types[0].dtype.hi)
    op = Concat(law)
    request = dot_request(op, types, types[0].dtype, [(0, 1, 2, 0)] * 4 + [(1, 0, 2, 3)], batch=2)
    whole, y = request.alternatives["y"], request.node.type
    parts = {"x0": whole.part(y, 0, types[0], 16), "x2": whole.part(y, 49, types[2], 16)}
    request = replace(request, alternatives={**request.alternatives, **parts})
    values = [random_integers(x, 2, seed) for seed, x in enumerate(types)]
    wanted = pack(op.evaluate(values).astype(y.dtype.carrier), y, whole)
    apart = [pack(values[i], types[i], request.alternatives[f"x{i}"]) for i in (1, 3)]
    names = ["concat_generic_nhwc", *(["concat_avx512vnni"] if not lacking(machine_of("avx512vnni")) else [])]
    for name in names:
        function = offer_of(name, request).build().function.with_attr("global_symbol", "kernel")
        assert accesses_outside(function) == []
        found = tvm.runtime.tensor(np.full(wanted.shape, POISON, np.uint8))
        library = tvm.compile(tvm.IRModule({"kernel": function}), target=HOST.tvm_target)
        library["kernel"](*map(tvm.runtime.tensor, apart), found)
        found = found.numpy()
        assert np.array_equal(found[..., 32:49], wanted[..., 32:49])
        assert np.array_equal(found[..., 65:], wanted[..., 65:])
        assert (found[..., :32] == POISON).all() and (found[..., 49:65] == POISON).all()
    assert decline_of("concat_in_place", request) == "computes nothing, and 'x1' is not written in place"


def test_conversions_to_and_from_a_part() -> None:
    type = TensorType(IntType.parse("s8"), (20, 3, 5), 1.0)
    part = Storage("NHWC", multiple=16, frame=(1, 0, 2, 0), offset=128, before=16, after=48)
    x = random_integers(type, 2)
    for source, to in ((Storage(), part), (part, Storage())):
        offer = CONVERT_GENERIC.offer(ConvertRequest(type, source, to, 2, HOST.target, 512))
        assert isinstance(offer, Offer)
        found = run_guarded(offer.build(), [pack(x, type, source)], type, to, 2, HOST)
        assert np.array_equal(found, pack(x, type, to))


def test_a_convolution_does_not_read_a_part() -> None:
    x = TensorType(IntType.parse("u8"), (16, 5, 9), 1.0)
    request = dot_request(conv(16, 48, SAME), [x], x.dtype, [(1, 1, 1, 1), (0, 0, 0, 0)])
    part = replace(request.alternatives["x0"], after=16)
    request = replace(request, alternatives={**request.alternatives, "x0": part})
    assert decline_of("conv2d_u8s8s32_avx512vnni", request).startswith("reads whole pixels, not NHWC/16")
