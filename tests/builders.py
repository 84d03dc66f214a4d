"""Short ways to graphs, for the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.tvm.chosen import Candidates
from hawq_tvm.backends.tvm.records import Tuning
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.interpreter import quantize_input
from hawq_tvm.core.ir import Array, Graph, IntType, Node, Operator, TensorType
from hawq_tvm.core.quantizer import LayerWeights, Range
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.storage import pack
from hawq_tvm.core.targets import TARGETS, Target
from hawq_tvm.frontend.capture import capture
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.settings import RoundingSettings

from . import networks

SIZE = 12


def samples(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Normal noise as images, float32 [count, 3, 12, 12]."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@cache
def captured(name: str) -> FloatGraph:
    """The float graph of a network in `networks`."""
    return capture(networks.make(name), samples(), name=name)


@cache
def ranges_of(name: str) -> Mapping[str, Range]:
    """Max-abs ranges of that network over 16 samples."""
    network = FloatModule(captured(name))
    return observe_ranges(lambda x, tap: network(x, tap=tap), [samples(16)], make_observer("max"))


@cache
def rounded(name: str) -> Mapping[str, Mapping[WeightFormat, LayerWeights]]:
    """That network's weights at 4 and at 8 bits, each layer rounded by itself."""
    return round_alone(captured(name), [samples(16)], (WeightFormat(4), WeightFormat(8)), RoundingSettings())


def uniform(name: str, bits: Bits) -> BitConfig:
    """That network with all its layers at one pair."""
    return BitConfig.uniform(tuple(layer.name for layer in captured(name).layers), bits)


def candidates_of(name: str, *pairs: Bits, batch: int = 1) -> Candidates:
    """That network and the pairs that its layers may have."""
    return Candidates(captured(name), ranges_of(name), pairs, batch=batch)


def integers_of(name: str, pairs: Sequence[str] = ("w8a8",)) -> Graph:
    """The integer graph of that network, its layers taking the pairs in turn."""
    graph = captured(name)
    bits = {layer.name: Bits.parse(pairs[i % len(pairs)]) for i, layer in enumerate(graph.layers)}
    return integerize(graph, ranges_of(name), BitConfig(bits))


def integers_of_module(
    name: str, make: Callable[[], nn.Module], size: int, pairs: Sequence[str], *, channels: int = 3
) -> Graph:
    """The integer graph of a network of random weights, its layers taking the pairs in turn; images of some size."""
    torch.manual_seed(0)
    network, x = make().eval(), torch.randn(4, channels, size, size)
    graph = capture(network, x, name=name)
    ranges = observe_ranges(lambda x, tap: FloatModule(graph)(x, tap=tap), [x], make_observer("max"))
    bits = {layer.name: Bits.parse(pairs[i % len(pairs)]) for i, layer in enumerate(graph.layers)}
    return integerize(graph, ranges, BitConfig(bits))


def noise_for(graph: Graph, count: int) -> Array:
    """Noise as integers of the graph's input, whatever the size of its images."""
    noise = torch.randn(count, *graph.input_type.shape, generator=torch.Generator().manual_seed(1))
    return quantize_input(noise.numpy(), graph.input_type)


def integer_samples(graph: Graph, count: int = 4) -> Array:
    """Noise as integers of the graph's input."""
    return quantize_input(samples(count).numpy(), graph.input_type)


def random_integers(type: TensorType, count: int, seed: int = 0) -> Array:
    """Integers over the whole range of a type, its extremes certainly among them."""
    generator = np.random.default_rng(seed)
    values = generator.integers(type.dtype.lo, type.dtype.hi + 1, (count, *type.shape))
    values.flat[:2] = type.dtype.lo, type.dtype.hi
    return values.astype(type.dtype.carrier)


def one_node_graph(op: Operator, inputs: Sequence[TensorType], output: IntType, name: str = "layer") -> Graph:
    """A graph of one operator; inputs after the first come from the first, by way of requantising nodes."""
    from hawq_tvm.core.ops import Requantize

    nodes, names = [], ["x"]
    for index, type in enumerate(inputs[1:], 1):
        rescale = _identity(type.dtype)
        nodes.append(Node(f"branch{index}", Requantize(rescale), ("x",), type))
        names.append(f"branch{index}")
    type = TensorType(output, op.output_shape(inputs), 1.0)
    nodes.append(Node(name, op, tuple(names), type))
    graph = Graph("test", "x", inputs[0], tuple(nodes), name)
    graph.check()
    return graph


def _identity(dtype: IntType) -> Any:
    from hawq_tvm.core.ir import Rescale

    return Rescale(np.array([2**30]), 30, dtype.lo, dtype.hi)


def compiled(
    graph: Graph,
    folder: Path,
    *,
    target: str | Target = "llvm",
    batch: int = 1,
    storages: str = "all",
    tuning: Tuning | None = None,
) -> CompiledModule:
    """The graph compiled and loaded; a target by its name, or one that has none in the table."""
    from hawq_tvm.backends.tvm.build import build_library
    from hawq_tvm.backends.tvm.lower import lower

    found = TARGETS[target] if isinstance(target, str) else target
    path = folder / found.library_name
    build_library(lower(graph, found, batch=batch, storages=storages, tuning=tuning), path)
    return CompiledModule(path)


def same(expected: Mapping[str, Array], got: Mapping[str, Array]) -> list[str]:
    """Names of the values that differ in dtype, shape or any element, or are missing."""
    return [
        name
        for name, value in expected.items()
        if name not in got or got[name].dtype != value.dtype or not np.array_equal(value, got[name])
    ]


def stored_wrongly(expected: Mapping[str, Array], module: CompiledModule, x: Array) -> list[str]:
    """Names of the calls whose memory, padding included, is not what `pack` makes of the value."""
    info, wrong = module.info, []
    for call, stored in module.stored(x).items():
        conversion = info.conversions.get(call)
        value, storage = (
            (call, info.values[call].storage) if conversion is None else (conversion.value, conversion.storage)
        )
        type = info.values[value].type
        packed = pack(expected[value], type, storage)
        same_shape = stored.dtype == packed.dtype and stored.shape == packed.shape
        if not same_shape or not np.array_equal(storage.own(stored, type), storage.own(packed, type)):
            wrong.append(call)
    return wrong
