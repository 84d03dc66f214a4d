"""Peaks and bandwidths of this machine: what must hold of them on any machine, busy or not."""

from __future__ import annotations

import threading

import pytest

from hawq_tvm.backends.tvm.host import find_c_compiler, instruction_sets, usable_cores
from hawq_tvm.core.errors import CompileError
from hawq_tvm.measure import ceilings
from hawq_tvm.measure.ceilings import PEAKS, Ceilings, measure_ceilings

needs_compiler = pytest.mark.skipif(find_c_compiler() is None, reason="there is no C compiler")


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_what_the_machine_has_is_measured(threads: int) -> None:
    found = measure_ceilings(threads, [1 << 15, 1 << 22])
    present = set(instruction_sets())
    assert set(found.gops) <= {name for name, flag in PEAKS.items() if flag in present}
    for name in ("avx512_vnni", "avx_vnni", "avx2"):
        assert (name in found.gops) == (PEAKS[name] in present), "AMX alone may be refused by the kernel"
    assert list(found.read_gbs) == [1 << 15, 1 << 22]
    assert all(value > 0 for value in (*found.gops.values(), *found.read_gbs.values()))
    assert found.threads == threads
    assert (found.hand_over_ns is not None) == (1 < threads <= usable_cores())
    assert found.hand_over_ns is None or found.hand_over_ns > 0


@needs_compiler
def test_operations_and_bytes_are_counted_as_they_are() -> None:
    probe = ceilings._Probe(1)
    per_round = {"avx512_vnni": 24 * 64 * 2, "avx_vnni": 12 * 32 * 2, "avx2": 12 * 16 * 2, "amx": 4 * 16 * 16 * 64 * 2}
    for name in probe.peaks:
        function = getattr(probe._library, name)
        function.restype = ceilings.ctypes.c_int64
        assert function(ceilings.ctypes.c_int64(5)) == 5 * per_round[name]


@needs_compiler
def test_a_buffer_is_read_to_its_end() -> None:
    probe = ceilings._Probe(1)
    words = (ceilings.ctypes.c_uint64 * 128)()  # 1,024 bytes
    start = -(-ceilings.ctypes.addressof(words) // 64) * 64
    read = probe._library.read_memory
    read.restype = ceilings.ctypes.c_uint64
    for index in range(64):  # 512 bytes from the first aligned one
        position = (start - ceilings.ctypes.addressof(words)) // 8 + index
        words[position] = 1 << index
        found = read(ceilings.ctypes.c_void_p(start), ceilings.ctypes.c_int64(512), ceilings.ctypes.c_int64(1))
        assert found == 1 << index, "the sum without carries of all that was read"
        words[position] = 0


@needs_compiler
def test_a_number_is_handed_over_in_turns() -> None:
    """What a core may do next it does at once; else it waits for the other."""
    function = ceilings._Probe(1)._library.hand_over
    function.argtypes = [ceilings.ctypes.c_void_p, ceilings.ctypes.c_int64, ceilings.ctypes.c_int64]
    number = ceilings.ctypes.c_int64(0)
    function(ceilings.ctypes.byref(number), 0, 1)
    assert number.value == 1
    thread = threading.Thread(target=function, args=(ceilings.ctypes.byref(number), 1, 5))
    thread.start()
    while number.value != 2:
        pass
    assert thread.is_alive()
    for mine in (2, 4, 6, 8):
        while number.value != mine:
            pass
        number.value += 1
    thread.join()
    assert number.value == 10


@needs_compiler
def test_more_threads_than_cores_hand_nothing_over() -> None:
    assert ceilings._Probe(usable_cores() + 1).hand_over_ns() is None


@needs_compiler
def test_no_thread_leaves_this_one_on_fewer_cores() -> None:
    before = usable_cores()
    measure_ceilings(2, [1 << 12])
    assert usable_cores() == before


def test_the_strongest_gives_the_peak() -> None:
    found = Ceilings(1, {"avx512_vnni": 1000.0, "amx": 6000.0, "avx2": 250.0}, {})
    assert (found.strongest, found.peak_gops) == ("amx", 6000.0)
    assert (Ceilings(1, {}, {}).strongest, Ceilings(1, {}, {}).peak_gops) == (None, None)


def test_without_a_compiler_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "find_c_compiler", lambda: None)
    with pytest.raises(CompileError, match="install a C compiler"):
        measure_ceilings(1, [])


@needs_compiler
def test_a_compiler_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(ceilings, "_SOURCE", tmp_path / "ceilings.c")  # type: ignore[operator]
    with pytest.raises(CompileError, match=r"does not compile ceilings\.c: .*ceilings\.c"):
        measure_ceilings(1, [])
