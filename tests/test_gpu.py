"""The facts of GPUs: they agree with one another, with what is printed of them, and with what TVM makes of them."""

from __future__ import annotations

import pytest

from hawq_tvm.core import gpu
from hawq_tvm.core.gpu import GpuFacts
from hawq_tvm.core.targets import TARGETS, Target

GPU_TARGETS = [target for target in TARGETS.values() if target.gpu is not None]


def facts(target: Target) -> GpuFacts:
    assert target.gpu is not None
    return target.gpu


def test_the_t4_is_the_first_gpu() -> None:
    assert GPU_TARGETS[0].name == "nvidia/t4" and facts(GPU_TARGETS[0]).architecture.sm == "sm_75"


@pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)
def test_peaks_follow_from_clocks_and_are_those_that_are_printed(target: Target) -> None:
    gpu = facts(target)
    assert {8, 16} <= set(gpu.published_tops) <= set(gpu.architecture.macs_per_cycle)
    for bits, published in gpu.published_tops.items():
        macs_per_second = gpu.sms * gpu.boost_clock_mhz * 1e6 * gpu.architecture.macs_per_cycle[bits]
        assert gpu.peak_tops(bits) == pytest.approx(2 * macs_per_second / 1e12)
        assert gpu.peak_tops(bits) == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)
def test_half_the_bits_are_multiplied_twice_as_fast(target: Target) -> None:
    rates = facts(target).architecture.macs_per_cycle
    assert rates[8] == 2 * rates[16]
    assert rates.get(4, 2 * rates[8]) == 2 * rates[8]


@pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)
def test_a_block_of_all_registers_is_resident(target: Target) -> None:
    """A full block at 64 registers a thread fits: 1024 x 64 = 65536, the limit that compilers assume."""
    architecture = facts(target).architecture
    assert architecture.registers_per_sm == 64 * gpu.MAX_THREADS_PER_BLOCK
    assert architecture.warps_per_sm * gpu.WARP_SIZE >= gpu.MAX_THREADS_PER_BLOCK
    assert architecture.shared_bytes_per_sm >= architecture.shared_bytes_per_block > 48 * 1024


def test_4_bits_are_native_up_to_ada() -> None:
    assert {target.name: facts(target).architecture.native(4) for target in GPU_TARGETS} == {
        "nvidia/t4": True,
        "nvidia/a100": True,
        "nvidia/a10": True,
        "nvidia/l4": True,
        "nvidia/h100": False,
    }


@pytest.mark.parametrize("target", GPU_TARGETS, ids=lambda target: target.name)
def test_tvm_gets_the_facts(target: Target) -> None:
    from hawq_tvm.backends.tvm.lower import Machine

    machine = Machine.resolve(target)
    architecture = facts(target).architecture
    assert str(machine.tvm_target.kind) == "cuda" and machine.tvm_target.attrs["arch"] == architecture.sm
    assert machine.tvm_target.attrs["max_shared_memory_per_block"] == architecture.shared_bytes_per_block
    assert str(machine.tvm_target.host.kind) == "llvm" and "mcpu" not in machine.tvm_target.host.attrs
    assert machine.cpu == "" and machine.vector_bits == 128


def test_a_cpu_has_no_gpu() -> None:
    assert TARGETS["llvm"].gpu is None and TARGETS["llvm/portable"].gpu is None
