"""Fit the rates of `kernels/generic/costs.py` to this machine: the table to paste there, and how well it fits.

    python -m benchmarks.storage_costs [--rounds N]

Every kernel is timed on one thread with warm caches, on the shapes of ImageNet networks; of its times the least counts,
since other work on the machine only adds. A kernel's cost is linear in its rates, so what a request's work is in each
unit is read off by asking for its cost at unit rates.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from scipy.optimize import least_squares, nnls

from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.tvm.host import cpu_name
from hawq_tvm.backends.tvm.lower import Machine
from hawq_tvm.backends.tvm.runtime import configure_threads
from hawq_tvm.backends.tvm.storage import channels_last
from hawq_tvm.core.float32_rescale import odd_multipliers
from hawq_tvm.core.ir import Array, Graph, IntType, Node, Operator, Rescale, TensorType, Window
from hawq_tvm.core.ops import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    PadChannels,
    Requantize,
)
from hawq_tvm.core.storage import Storage, pack
from hawq_tvm.core.targets import find_target
from hawq_tvm.kernels import ConvertRequest, Offer, Request, collect_offers, offer_conversion
from hawq_tvm.kernels.generic import costs

U8 = IntType(8, signed=False)
UNITS = ("macs_ns", "output_ns", "copied_ns")
RANDOM = np.random.default_rng(0)


@dataclass(frozen=True, eq=False)
class Case:
    """A kernel to time: its name, its offer, the types of inputs and result, what its cost is at unit rates."""

    name: str
    offer: Offer
    inputs: tuple[TensorType, ...]
    output: TensorType


def rescale(count: int, shape: tuple[int, ...] | None = None) -> Rescale:
    shift = 40 if shape is None and count > 3 else 31
    values = odd_multipliers(RANDOM.integers(2**29, 2**30, shape or (count,)), shift)  # as networks have them
    return Rescale(values, shift, 0, 255)


def conv(
    channels: int, size: int, out: int, kernel: int, stride: int = 1, groups: int = 1, *, bits: int = 8,
    residual: bool = False,
) -> tuple[Operator, Any]:  # fmt: skip
    limit = (1 << (bits - 1)) - 1
    weight = RANDOM.integers(-limit, limit + 1, (out, channels // groups, kernel, kernel))
    window = Window((kernel, kernel), (stride, stride), (kernel // 2,) * 4)
    law = replace(rescale(out), residual=np.array([2**28])) if residual else rescale(out)
    shapes = [(channels, size, size)] + [(out, size // stride, size // stride)] * residual
    return Conv2d(weight, bits, RANDOM.integers(-999, 999, out), law, window, groups), shapes


def operators() -> Iterator[tuple[Operator, list[tuple[int, ...]]]]:
    """Operators with the shapes of their inputs."""
    yield conv(3, 224, 64, 7, 2)
    for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        yield conv(channels, size, channels, 3)
        yield conv(channels, size, channels, 1)
        yield conv(channels, size, 4 * channels, 1)
        yield conv(4 * channels, size, channels, 1)
        if size > 7:
            yield conv(channels, size, 2 * channels, 3, 2)
            yield conv(channels, size, 2 * channels, 1, 2)
    for channels, size, stride in ((32, 112, 1), (96, 112, 2), (144, 56, 1), (192, 28, 1), (576, 14, 1), (960, 7, 1)):
        yield conv(channels, size, channels, 3, stride, channels)
    for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        for bits in (4, 8):
            yield conv(channels, size, channels, 3, bits=bits, residual=True)
            yield conv(channels, size, 4 * channels, 1, bits=bits, residual=True)
            yield conv(channels, size, channels, 3, bits=bits)
            yield conv(channels, size, 4 * channels, 1, bits=bits)
    yield conv(128, 56, 128, 3, 1, 32)
    yield conv(256, 28, 256, 3, 1, 32)
    for features, bits in ((512, 8), (2048, 8), (512, 4), (2048, 4)):
        weight = RANDOM.integers(-7, 8, (1000, features))
        yield Linear(weight, bits, RANDOM.integers(-9, 9, 1000), rescale(1000)), [(features,)]
    for channels, size in ((64, 112), (64, 56), (192, 28), (480, 14), (832, 7)):
        window = Window((3, 3), (2, 2), (1, 1, 1, 1))
        yield MaxPool2d(window), [(channels, size, size)]
        yield AvgPool2d(Window((3, 3), (1, 1), (1, 1, 1, 1)), rescale(1, (1, 1))), [(channels, size, size)]
        halved = Window((2, 2), (2, 2))
        yield MaxPool2d(halved), [(channels, size, size)]
        yield AvgPool2d(halved, rescale(1, (1, 1))), [(channels, size, size)]
        yield GlobalAvgPool2d(rescale(1)), [(channels, size, size)]
        yield Requantize(rescale(1)), [(channels, size, size)]
        yield PadChannels(channels // 2, channels // 2), [(channels, size, size)]
        yield Add(rescale(2)), [(channels, size, size)] * 2
        yield Concat(rescale(3)), [(channels, size, size), (channels // 2, size, size), (channels // 4, size, size)]


CONVERTED = ((3, 224), (64, 112), (64, 56), (24, 56), (256, 28), (512, 14), (1024, 7))
"""Channels and sizes of images that are copied into the other storage."""


def cases(machine: Machine) -> Iterator[Case]:
    for op, shapes in operators():
        inputs = tuple(TensorType(U8, shape, 1.0) for shape in shapes)
        names = tuple(f"x{i}" for i in range(len(inputs)))
        output = TensorType(U8, op.output_shape(inputs), 1.0)
        node = Node("y", op, names, output)
        storages: dict[str, Storage] = {}
        for name, type in zip(names, inputs, strict=True):
            graph = Graph("one", name, type, (Node("y", op, (name,), output),), "y")
            storages |= channels_last(graph, machine.vector_bits // 32)
        request = Request(node, inputs, 1, machine.target, machine.vector_bits, storages, machine.features)
        for kernel, answer in collect_offers(request).items():
            if isinstance(answer, Offer):
                yield Case(f"{kernel} {inputs[0]} -> {output}", answer, inputs, output)
    for channels, size in CONVERTED:
        type = TensorType(U8, (channels, size, size), 1.0)
        multiple = min(machine.vector_bits // 32, max(4, 1 << (channels - 1).bit_length()))
        framed = Storage("NHWC", multiple=multiple, frame=(1, 1, 1, 1))
        for source, to, features in (
            (Storage(), framed, machine.features), (Storage(), framed, frozenset()), (framed, Storage(), frozenset()),
        ):  # fmt: skip
            found = offer_conversion(ConvertRequest(type, source, to, 1, machine.target, machine.vector_bits, features))
            assert found is not None
            yield Case(f"{found[0]} {type} {source} -> {to}", found[1], (type,), type)


def unit_costs(machine: Machine) -> list[tuple[str, list[float]]]:
    """For each case the name of its rates, and its work in each unit, in thousands."""
    work: list[dict[str, list[float]]] = []
    known = dict(costs.RATES)
    for unit in UNITS:
        for name in known:
            zero = costs.Rates(0.0, 0.0, 0.0)
            costs.RATES.update(dict.fromkeys(known, zero))
            costs.RATES[name] = costs.Rates(**{**vars(zero), unit: 1.0})
            for index, case in enumerate(cases(machine)):
                if index == len(work):
                    work.append(defaultdict(lambda: [0.0] * len(UNITS)))
                work[index][name][UNITS.index(unit)] = case.offer.cost - costs.CALL_US
    costs.RATES.update(known)
    return [next((name, units) for name, units in row.items() if any(units)) for row in work]


def time_all(every: list[Case], machine: Machine, rounds: int) -> list[float]:
    """The least microseconds of each kernel, all taking turns."""
    functions, arguments = {}, []
    for index, case in enumerate(every):
        built = case.offer.build()
        functions[f"kernel_{index}"] = built.function.with_attr("global_symbol", f"kernel_{index}")
        inputs = [
            pack(RANDOM.integers(0, 256, (1, *type.shape)), type, storage)
            for type, storage in zip(case.inputs, case.offer.reads, strict=True)
        ]
        output = np.zeros(case.offer.writes.shape(case.output, 1), case.offer.writes.dtype(case.output))
        arguments.append([tvm.runtime.tensor(array) for array in (*inputs, *built.constants, output)])
    library = tvm.compile(tvm.IRModule(functions), target=machine.tvm_target)
    configure_threads(1)
    calls = [library[name] for name in functions]
    least = [float("inf")] * len(every)
    for _ in range(rounds):
        for index, (call, given) in enumerate(zip(calls, arguments, strict=True)):
            call(*given)
            for _ in range(3):
                start = time.perf_counter()
                call(*given)
                least[index] = min(least[index], (time.perf_counter() - start) * 1e6)
    return least


def fit(matrix: Array, times: Array) -> Array:
    """Rates of at least 0 with the least |log(model / measured)|, squared while small: outliers count less."""
    start, _ = nnls(matrix / times[:, None], np.ones(len(times)))
    used = matrix.any(axis=0)

    def errors(logs: Array) -> Array:
        return np.asarray(np.log(matrix[:, used] @ np.exp(logs) / times))

    found = least_squares(errors, np.log(np.maximum(start[used], 1e-4)), loss="soft_l1", f_scale=0.1)
    rates = np.zeros(matrix.shape[1])
    rates[used] = np.exp(found.x)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    machine = Machine.resolve(find_target("llvm"))
    every, work = list(cases(machine)), unit_costs(machine)
    measured = time_all(every, machine, rounds)
    rows, details = [], []
    for name in costs.RATES:
        members = [index for index, (rates, _) in enumerate(work) if rates == name]
        if not members:
            continue
        matrix = np.array([work[index][1] for index in members])
        times = np.array([measured[index] for index in members])
        wanted = np.maximum(times - costs.CALL_US, 0.1)
        rates = fit(matrix, wanted)
        predicted = matrix @ rates + costs.CALL_US
        spread = np.exp(np.abs(np.log(predicted / times)))
        errors = f"{np.median(spread):.2f}, {spread.max():.2f}"
        rows.append([name, *(f"{rate:.4f}" for rate in rates), f"{len(members)}", errors])
        for index, value in zip(members, predicted, strict=True):
            details.append({"kernel": every[index].name, "us": measured[index], "model_us": value})
    print(f"{cpu_name()}, {machine.cpu}, one thread, the least of {3 * rounds} calls\n")
    print(markdown(["rates", *UNITS, "kernels", "off by a factor, median and largest"], rows))
    fitted = {row[0]: dict(zip(UNITS, map(float, row[1:4]), strict=True)) for row in rows}
    print(f"\nwrote {write_results('storage_costs', {'rates': fitted, 'kernels': details})}")


if __name__ == "__main__":
    main()
