"""How much of ResNet-50's weights stays in memory where its inner layers have 4 bits, on CPUs of several kinds."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.integerize import integerize
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.quantizer import RangeTable
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.frontend.capture import capture
from hawq_tvm.sources.zoo.resnet import resnet50

from .cpus import machine_of
from .soft_tiles import SAPPHIRE_RAPIDS

MOST = 0.55
MACHINES = {
    "AMX": lambda: Machine.resolve(SAPPHIRE_RAPIDS),
    "AVX512-VNNI": lambda: machine_of("avx512vnni"),
    "AVX-VNNI": lambda: machine_of("avxvnni"),
    "any": lambda: Machine.resolve(TARGETS["llvm/portable"]),
}


@cache
def network() -> tuple[FloatGraph, RangeTable]:
    torch.manual_seed(0)
    module, x = resnet50().eval(), torch.randn(1, 3, 224, 224)
    graph = capture(module, x, name="resnet50")
    return graph, observe_ranges(lambda x, tap: FloatModule(graph)(x, tap=tap), [x], make_observer("max"))


def resident_bytes(machine: Machine, inner: Bits) -> int:
    """Weights, biases and multipliers as kernels keep them, with the first and the last layer at 8 bits."""
    graph, ranges = network()
    layers = [layer.name for layer in graph.layers]
    bits = {name: Bits(8, 8) if name in (layers[0], layers[-1]) else inner for name in layers}
    integers = integerize(graph, ranges, BitConfig(bits))
    plan = plan_storages(integers, machine.target, machine.vector_bits, batch=1, features=machine.features)
    total = 0
    for name, request in plan.requests.items():
        if isinstance(request.node.op, WeightedOperator):
            offer = plan.offers[name]
            assert offer.weight_bits == (4 if bits[name].weight == 4 else 8), name
            total += sum(constant.nbytes for constant in offer.build().constants)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("cpu", MACHINES)
def test_four_bits_take_little_more_than_half_of_eight(cpu: str) -> None:
    """The first and the last layer keep 8 bits: 8 % of the weights."""
    machine = MACHINES[cpu]()
    assert resident_bytes(machine, Bits(4, 8)) <= MOST * resident_bytes(machine, Bits(8, 8))
