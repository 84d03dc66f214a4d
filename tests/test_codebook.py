"""Codebooks: the exact k-means on a line, and networks whose weights are indexes, equal in every executor."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawq_tvm.backends.onnx.io import from_onnx, to_onnx
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.core import interpreter
from hawq_tvm.core.codebook import (
    CODEBOOK_BITS,
    WeightFormat,
    best_codebook,
    check_codebook,
    index_bits,
    indexes_of,
    mass_of,
    nearest_codes,
)
from hawq_tvm.core.errors import AllocationError, GraphError, ModelFileError, RunError
from hawq_tvm.core.integerize import integerize, round_to_nearest
from hawq_tvm.core.ir import OUTPUT_TYPE, Array, Graph, IntType, Node, Rescale, TensorType, Window
from hawq_tvm.core.ops import Conv2d, Flatten, Linear, WeightedOperator
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.measure.verify import verify
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.runs.layers import describe_layers, read_layers
from hawq_tvm.runs.weights_io import load_weights, save_weights
from hawq_tvm.settings import RoundingSettings

from .builders import captured, compiled, integer_samples, integers_of, ranges_of, samples

PAIRS = ("k4a8", "k2a4", "w8a8", "k6a8", "w4a8", "k3a8", "k5a4")


def loss(codebook: Array, mass: np.ndarray) -> float:
    values = np.arange(-127, 128, dtype=np.float64)
    return float((mass * (values - nearest_codes(values, codebook)) ** 2).sum())


@given(st.integers(0, 2**32 - 1), st.sampled_from([*CODEBOOK_BITS]), st.floats(0.01, 1.0))
@settings(max_examples=60)
def test_a_codebook_ascends_and_no_move_of_one_value_betters_it(seed: int, bits: int, density: float) -> None:
    draw = np.random.default_rng(seed)
    mass = draw.exponential(size=255) * (draw.random(255) < density)
    found = best_codebook(mass, bits)
    check_codebook(found)
    assert index_bits(found) == bits
    least = loss(found, mass)
    for place in range(len(found)):
        for move in (-1, 1):
            other = found.astype(np.int64)
            other[place] += move
            if abs(other[place]) <= 127 and (np.diff(other) > 0).all():
                assert loss(other.astype(np.int8), mass) >= least * (1 - 1e-9)


def test_four_values_are_the_best_of_all_fours() -> None:
    """Against every codebook there is, over weights that lie on few values."""
    draw = np.random.default_rng(3)
    for _ in range(5):
        mass = np.zeros(255)
        places = draw.choice(np.arange(100, 150), 9, replace=False)
        mass[places] = draw.exponential(size=9)
        candidates = combinations(range(int(places.min()) - 127, int(places.max()) - 126), 4)
        least = min(loss(np.array(four, np.int8), mass) for four in candidates)
        assert loss(best_codebook(mass, 2), mass) == pytest.approx(least, rel=1e-9, abs=1e-12)


def test_as_many_values_as_the_codebook_holds_are_kept_as_they_are() -> None:
    values = np.array([-127, -3, 0, 1, 2, 60, 61, 127], np.int8)
    mass = mass_of(values, np.ones(8))
    assert loss(best_codebook(mass, 3), mass) == 0
    assert nearest_codes(values.astype(np.float64), best_codebook(mass, 3)).tolist() == values.tolist()
    check_codebook(best_codebook(np.zeros(255), 6))  # nothing to go by


def test_ties_go_up_and_indexes_say_where() -> None:
    codebook = np.array([-127, -1, 2, 9], np.int8)
    assert nearest_codes(np.array([0.5, 0.49, 500.0, -500.0]), codebook).tolist() == [2, -1, 9, -127]
    assert indexes_of(np.array([9, -127, 2], np.int8), codebook).tolist() == [3, 0, 2]


@pytest.mark.parametrize(
    "codebook",
    [np.arange(5, dtype=np.int8), np.zeros(4, np.int8), np.array([-128, 0, 1, 2], np.int8), np.arange(4)],
)
def test_what_is_no_codebook_is_refused(codebook: Array) -> None:
    with pytest.raises(ValueError, match="codebook"):
        check_codebook(codebook)


def test_formats_and_bits() -> None:
    assert Bits.parse("k4a8") == Bits(4, 8, codebook=True)
    assert repr(Bits.parse("k4a8")) == "k4a8"
    assert Bits.parse("k4a8").operations == 64  # multiplied as 8 bits
    assert Bits.parse("w4a8").operations == 32
    assert Bits.parse("k4a8").format.size_bytes(100) == 50 + 16
    assert sorted({WeightFormat(8), WeightFormat(4, True), WeightFormat(4)}) == [
        WeightFormat(4), WeightFormat(4, True), WeightFormat(8)
    ]  # fmt: skip
    for wrong in ("k7a8", "k8a8"):
        with pytest.raises(AllocationError, match="an index into a codebook has 2 to 6 bits"):
            Bits.parse(wrong)


@pytest.mark.parametrize("name", ["Residual", "Mobile", "Concat"])
def test_every_executor_computes_the_same(name: str, tmp_path: Path) -> None:
    graph = integers_of(name, PAIRS)
    assert any(isinstance(node.op, WeightedOperator) and node.op.codebook is not None for node in graph)
    library = compiled(graph, tmp_path)
    executors = {
        "numpy": lambda x: interpreter.run(graph, x),
        "pytorch": IntegerModule(graph).run,
        "onnxruntime": OnnxRuntimeModule(to_onnx(graph)).run,
        "tvm": library.values,
    }
    report = verify(graph, executors, [integer_samples(graph, 8)])
    assert report.ok, str(report)


def test_the_file_holds_indexes_and_is_read_back() -> None:
    graph = integers_of("Residual", PAIRS)
    model = to_onnx(graph)
    again = from_onnx(model)
    assert again.fingerprint() == graph.fingerprint()
    sizes = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    packed = {
        node.name: (node.op.weight.size + 1) // 2
        for node in graph.nodes
        if isinstance(node.op, WeightedOperator) and node.op.format.bits <= 4
    }
    assert list(packed) == ["stem", "conv1", "fc"]
    assert {name: sizes[f"{name}.weight"] for name in packed} == packed


def test_a_codebook_that_was_changed_is_noticed() -> None:
    model = to_onnx(integers_of("Residual", ("k4a8",)))
    book = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("codebook"))
    book.raw_data = bytes([129]) + book.raw_data[1:]
    with pytest.raises(ModelFileError, match="corrupted or changed"):
        from_onnx(model)


def weighted_of(graph: Graph) -> WeightedOperator:
    return next(node.op for node in graph if isinstance(node.op, WeightedOperator) and node.op.codebook is not None)


def test_weights_outside_of_the_codebook_are_refused() -> None:
    graph = integers_of("Residual", ("k2a8",))
    op = weighted_of(graph)
    assert op.codebook is not None
    strange = op.weight.copy()
    strange.flat[0] = next(value for value in range(-127, 128) if value not in op.codebook)
    node = next(node for node in graph if node.op is op)
    changed = tuple(replace(n, op=replace(op, weight=strange)) if n is node else n for n in graph.nodes)
    with pytest.raises(GraphError, match="each is one of its values"):
        replace(graph, nodes=changed).check()


def fixed() -> Graph:
    """A convolution and a linear layer, every number written here."""
    weight = np.arange(-4, 4, dtype=np.int8).reshape(2, 1, 2, 2)
    inner = Rescale(np.array([3 << 20, 5 << 19]), 30, 0, 255)
    conv = Conv2d(weight, 4, np.array([5, -6]), inner, Window((2, 2)))
    last = Rescale(np.array([1, 2]), 1, OUTPUT_TYPE.lo, OUTPUT_TYPE.hi)
    linear = Linear(np.array([[1, -2], [3, -4]], np.int8), 8, np.array([7, 8]), last)
    u8 = IntType(8, signed=False)
    nodes = (
        Node("conv", conv, ("x",), TensorType(u8, (2, 1, 1), 0.5)),
        Node("flat", Flatten(), ("conv",), TensorType(u8, (2,), 0.5)),
        Node("fc", linear, ("flat",), TensorType(OUTPUT_TYPE, (2,), 0.25)),
    )
    return Graph("fixed", "x", TensorType(u8, (1, 2, 2), 1.0), nodes, "fc")


def test_networks_without_codebooks_keep_their_fingerprints() -> None:
    """A field that is None says nothing, so that files written before it are still read."""
    op = next(node.op for node in integers_of("Residual").nodes if isinstance(node.op, WeightedOperator))
    assert [field.name for field in fields(op) if field.metadata] == ["codebook"]
    assert op.codebook is None
    graph = fixed()
    graph.check()
    recorded = "90576408a84b63d417cc86d7b4e2c7c1e6c33449d87e22410b122fffd632223b"  # before the field was there
    assert graph.fingerprint() == recorded
    conv = graph.node("conv").op
    assert isinstance(conv, Conv2d)
    clustered = replace(graph.node("conv"), op=replace(conv, codebook=np.arange(-4, 4, dtype=np.int8)))
    assert replace(graph, nodes=(clustered, *graph.nodes[1:])).fingerprint() != recorded


def test_least_error_beats_nearest_with_a_codebook_too() -> None:
    graph = captured("Residual")
    formats = [WeightFormat(bits, codebook=True) for bits in (2, 4)]
    found = round_alone(graph, [samples(16)], [*formats, WeightFormat(2)], RoundingSettings())
    for layer in graph.layers:
        assert layer.weight is not None
        for format in formats:
            weights = found[layer.name][format]
            assert weights.codebook is not None
            assert np.isin(weights.integers, weights.codebook).all()
            assert len(weights.codebook) == 2**format.bits

    def error(layer: str, format: WeightFormat) -> float:
        wanted = graph.by_name[layer].weight
        assert wanted is not None
        return float(np.square(found[layer][format].restored - wanted).sum())

    def total(format: WeightFormat) -> float:
        return sum(error(layer.name, format) for layer in graph.layers)

    assert total(formats[1]) < total(formats[0]) < total(WeightFormat(2))


def test_rounded_weights_are_stored_and_read(tmp_path: Path) -> None:
    graph = captured("Residual")
    formats = (WeightFormat(4, codebook=True), WeightFormat(8))
    weights = {layer.name: round_to_nearest(layer, formats[i % 2], 1.0) for i, layer in enumerate(graph.layers)}
    save_weights(weights, tmp_path / "weights.safetensors")
    again = load_weights(tmp_path / "weights.safetensors")
    for name, layer in weights.items():
        assert again[name].format == layer.format
        assert np.array_equal(again[name].integers, layer.integers)
        if layer.codebook is not None:
            assert np.array_equal(np.asarray(again[name].codebook), layer.codebook)
    bits = {layer.name: Bits(4 if i % 2 == 0 else 8, 8, i % 2 == 0) for i, layer in enumerate(graph.layers)}
    made = integerize(graph, ranges_of("Residual"), BitConfig(bits), weights)
    facts = read_layers(describe_layers(made))
    assert [fact.bits for fact in facts] == [*bits.values()]
    assert facts[0].size_bytes == facts[0].parameters / 2 + 16
    assert facts[0].bops == facts[0].macs * 64


def test_a_codebook_that_does_not_hold_its_integers_is_refused(tmp_path: Path) -> None:
    layer = captured("Residual").layers[0]
    weights = round_to_nearest(layer, WeightFormat(4, codebook=True), 1.0)
    assert weights.codebook is not None
    strange = next(value for value in range(-127, 128) if value not in weights.codebook)
    save_weights({"x": replace(weights, integers=np.full_like(weights.integers, strange))}, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match="not those of a codebook"):
        load_weights(tmp_path / "w.safetensors")
    save_weights({"x": replace(weights, codebook=weights.codebook[::-1].copy())}, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match="ascends"):
        load_weights(tmp_path / "w.safetensors")
