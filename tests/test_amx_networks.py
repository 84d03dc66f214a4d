"""Whole networks for a CPU with AMX, on tiles in software: every value exact, every stored byte, few conversions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tvm

from hawq_tvm.backends.tvm import host
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.cli import doctor
from hawq_tvm.core import interpreter
from hawq_tvm.core.ir import Graph
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.sources.zoo.resnet import resnet18, resnet20

from .builders import integer_samples, integers_of, integers_of_module, noise_for, same, stored_wrongly
from .soft_tiles import SAPPHIRE_RAPIDS, library, needs_vectors, soft_tiles

NETWORKS = {"resnet20": (resnet20, 32), "resnet18": (resnet18, 64)}


def integers_of_zoo(name: str, pairs: tuple[str, ...]) -> Graph:
    """A zoo network of random weights, its layers taking the pairs in turn."""
    make, size = NETWORKS[name]
    return integers_of_module(name, make, size, pairs)


@needs_vectors
@pytest.mark.parametrize(
    ("name", "pairs"), [("resnet20", ("w8a8",)), ("resnet18", ("w8a8",)), ("resnet18", ("w8a8", "w4a8"))]
)
def test_zoo_networks_are_exact_and_lie_in_planes_from_end_to_end(
    name: str, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    graph = integers_of_zoo(name, pairs)
    x = noise_for(graph, 2)
    expected = interpreter.run(graph, x)
    with soft_tiles() as target:
        path = tmp_path / target.library_name
        build_library(lower(graph, target), path)
    module = CompiledModule(path)
    before = library().soft_products()
    assert same(expected, module.values(x)) == []
    assert library().soft_products() > before
    assert stored_wrongly(expected, module, x) == []
    assert not module.info.conversions
    convolutions = {k for name, k in module.info.kernels.items() if graph.node(name).op.kind == "conv2d"}
    assert all("_amx" in kernel for kernel in convolutions), convolutions


@contextmanager
def poisoned_memory(byte: int) -> Iterator[None]:
    """What is allocated inside holds a byte's complement everywhere, and what is freed the byte (mallopt(3))."""
    libc, perturb = ctypes.CDLL(None), -6
    if not hasattr(libc, "mallopt") or not libc.mallopt(perturb, byte):
        pytest.skip("needs glibc's mallopt")
    try:
        yield
    finally:
        libc.mallopt(perturb, 0)


@needs_vectors
def test_one_library_computes_the_same_whatever_memory_held_and_without_permission(tmp_path: Path) -> None:
    graph = integers_of_zoo("resnet20", ("w8a8", "w4a4"))
    x = noise_for(graph, 1)
    expected = interpreter.run(graph, x)[graph.output]
    with soft_tiles() as target:
        path = tmp_path / target.library_name
        build_library(lower(graph, target), path)
    for byte in (0x55, 0xFF):
        with poisoned_memory(byte):
            assert np.array_equal(CompiledModule(path).run(x), expected)
    products = library().soft_products()
    library().soft_grant(False)
    try:
        assert np.array_equal(CompiledModule(path).run(x), expected)
    finally:
        library().soft_grant(True)
    assert library().soft_products() == products


@needs_vectors
@pytest.mark.parametrize("name", ["Concat", "Mobile", "Pools", "Padded"])
def test_what_tiles_do_not_compute_lies_in_planes_too(name: str, tmp_path: Path) -> None:
    """Depthwise and grouped convolutions, pools, sums, concatenations, channels of zeros."""
    graph = integers_of(name, ("w8a8", "w4a4"))
    x = integer_samples(graph, 3)
    expected = interpreter.run(graph, x)
    with soft_tiles() as target:
        path = tmp_path / target.library_name
        build_library(lower(graph, target, batch=2, storages="channels_last"), path)
    module = CompiledModule(path)
    assert same(expected, module.values(x)) == []
    assert stored_wrongly(expected, module, x) == []


def test_a_resnet_needs_no_conversion() -> None:
    """The plan alone, for a real CPU with tiles."""
    machine = Machine.resolve(SAPPHIRE_RAPIDS)
    graph = integers_of_zoo("resnet18", ("w8a8",))
    plan = plan_storages(graph, SAPPHIRE_RAPIDS, machine.vector_bits, batch=1, features=machine.features)
    assert plan.exact
    assert not plan.conversions


# Linux's permission


@pytest.mark.parametrize("flags", [[], ["amx_tile"], ["amx_int8"]])
def test_a_cpu_without_tiles_is_not_asked(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "instruction_sets", lambda: flags)
    assert host.tiles_granted() is None


@pytest.mark.parametrize(("answer", "granted"), [(0, True), (-1, False)])
def test_linux_is_asked_for_tiles(answer: int, granted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Libc:
        def syscall(self, *numbers: ctypes.c_long) -> int:
            asked.extend(number.value for number in numbers)
            return answer

    monkeypatch.setattr(host, "instruction_sets", lambda: ["amx_int8", "amx_tile", "avx2"])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc())
    assert host.tiles_granted() is granted
    assert asked == [158, 0x1023, 18]


@pytest.mark.parametrize("granted", [True, False, None])
def test_tiles_are_counted_on_where_linux_grants_them(granted: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine may hide them from a CPU whose name LLVM knows to have them."""
    monkeypatch.setattr(tvm.target.codegen, "llvm_get_system_cpu", lambda: "sapphirerapids")
    monkeypatch.setattr("hawq_tvm.backends.tvm.lower.tiles_granted", lambda: granted)
    monkeypatch.setattr("hawq_tvm.backends.tvm.lower.instruction_sets", list)
    features = Machine.resolve(TARGETS["llvm"]).features
    assert ({"amx-int8", "amx-tile"} <= features) == (granted is True)
    assert "avx512vnni" in features


@pytest.mark.parametrize("granted", [True, False, None])
def test_the_doctor_says_where_tiles_are_not_granted(granted: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["amx_int8", "amx_tile", "avx512_vnni"] if granted is not None else ["avx512_vnni"]
    monkeypatch.setattr(doctor, "instruction_sets", lambda: sets)
    monkeypatch.setattr(doctor, "tiles_granted", lambda: granted)
    detail = doctor._cpu().detail
    assert ("AMX" in detail) == (granted is not None)
    assert ("Linux does not grant its tiles" in detail) == (granted is False)
