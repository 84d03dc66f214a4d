"""Whole graphs through TVM: exact, integers only, planned, exported, and run by the runtime alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tvm import tirx
from tvm_ffi.structural import structural_visit

from hawq_tvm.backends.onnx.io import read_onnx, to_onnx
from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
from hawq_tvm.backends.pytorch.integer_module import IntegerModule
from hawq_tvm.backends.tvm import runtime
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.info import LibraryInfo
from hawq_tvm.backends.tvm.latency import measure_latency
from hawq_tvm.backends.tvm.lower import Machine, lower
from hawq_tvm.backends.tvm.runtime import CompiledModule
from hawq_tvm.backends.tvm.storage import PALETTES, alternatives_of
from hawq_tvm.cli.doctor import examine
from hawq_tvm.core import interpreter
from hawq_tvm.core.errors import CompileError, DataError, RuntimeModuleError
from hawq_tvm.core.float32_rescale import float32_is_exact
from hawq_tvm.core.float32_residual import floor_form
from hawq_tvm.core.ir import Graph, IntType, Operator, Rescale, TensorType, Window
from hawq_tvm.core.ops import (
    OPS,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    PadChannels,
    Requantize,
    WeightedOperator,
)
from hawq_tvm.core.specs import Bits
from hawq_tvm.core.storage import Storage
from hawq_tvm.core.targets import TARGETS
from hawq_tvm.kernels import BuiltKernel, Kernel, Offer, Request, registry
from hawq_tvm.runs.summary import stored_values

from . import networks
from .builders import (
    candidates_of,
    compiled,
    integer_samples,
    integers_of,
    one_node_graph,
    random_integers,
    same,
    stored_wrongly,
)

MIXED = ("w8a8", "w4a4", "w2a5", "w5a3")


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize(("pairs", "storages"), [(("w8a8",), "all"), (MIXED, "channels_last"), (MIXED, "canonical")])
def test_every_value_is_exact(name: str, pairs: tuple[str, ...], storages: str, tmp_path: Path) -> None:
    """Every byte of every storage too: planned memory is shared, so frames are written in each call."""
    graph = integers_of(name, pairs)
    x = integer_samples(graph, 5)
    expected = interpreter.run(graph, x)
    module = compiled(graph, tmp_path, batch=2, storages=storages)
    assert same(expected, module.values(x)) == []
    assert stored_wrongly(expected, module, x) == []
    assert np.array_equal(module.run(x), expected[graph.output])


@pytest.mark.parametrize("name", ["Residual", "Mobile"])
def test_the_portable_target_is_exact_too(name: str, tmp_path: Path) -> None:
    graph = integers_of(name, MIXED)
    x = integer_samples(graph)
    module = compiled(graph, tmp_path, target="llvm/portable")
    assert same(interpreter.run(graph, x), module.values(x)) == []
    assert module.info.cpu == ""
    assert module.info.instruction_sets == ()


def float_dtypes(function: Any) -> set[str]:
    """Every float dtype in a PrimFunc: of parameters, buffers, constants and each expression."""
    found: set[str] = set()

    def visit(node: Any, visitor: Any) -> Any:
        for dtype in (getattr(node, "dtype", None), getattr(getattr(node, "ty", None), "dtype", None)):
            if "float" in str(dtype):
                found.add(str(dtype))
        return visitor.default_visit(node)

    structural_visit(function, visit)
    return found


def prim_funcs(graph: Graph, target: str = "llvm", storages: str = "all") -> dict[str, Any]:
    module = lower(graph, TARGETS[target], storages=storages).module
    return {str(var.name_hint): f for var, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}


@pytest.mark.parametrize("storages", PALETTES)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_no_float_in_any_portable_primfunc(name: str, storages: str) -> None:
    functions = prim_funcs(integers_of(name, MIXED), "llvm/portable", storages)
    inner = {label: f for label, f in functions.items() if not label.startswith(("quantize_", "dequantize_"))}
    assert len(inner) >= 3
    for label, function in inner.items():
        assert float_dtypes(function) == set(), label
        assert "float" not in function.script(), label


def is_proved(op: Operator, inputs: Sequence[TensorType]) -> bool:
    """Whether float32 is exact for an operator: as one product, or as one with a residual, stored with any offset."""
    rescale, bounds = op.rescale_or_none, op.bounds(inputs)
    assert rescale is not None and bounds is not None
    if rescale.residual is None:
        return float32_is_exact(rescale, bounds)
    forms = (
        floor_form(rescale, bounds.accumulator, inputs[1].dtype, residual_offset=at, offset=to)
        for at, to in product((0, 128), repeat=2)
    )
    return any(form is not None for form in forms)


@pytest.mark.parametrize("storages", PALETTES)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_float_stands_only_where_it_is_proved_exact(name: str, storages: str) -> None:
    lowered = lower(integers_of(name, MIXED), TARGETS["llvm"], storages=storages)
    for call, function in lowered.functions.items():
        if float_dtypes(lowered.module[function]):
            request = lowered.plan.requests[call]
            assert is_proved(request.node.op, request.inputs), call


def test_the_search_for_floats_finds_one() -> None:
    from tvm import te

    x = te.placeholder((4,), "int8", name="x")
    hidden = te.compute((4,), lambda i: (x[i].astype("float32") * tirx.const(2.0, "float32")).astype("int8"), name="y")
    function = te.create_prim_func([x, hidden])
    assert float_dtypes(function) == {"float32"}


def test_equal_kernels_are_compiled_once() -> None:
    graph = integers_of("Residual")
    twice = graph.node("conv2")
    again = replace(graph, nodes=(*graph.nodes, replace(twice, name="again")))
    again.check()
    for storages in ("canonical", "channels_last"):  # "all" may choose others for one layer more
        assert len(prim_funcs(again, storages=storages)) == len(prim_funcs(graph, storages=storages))


def test_activation_memory_is_planned_and_reused() -> None:
    graph = integers_of("Residual")
    lowered = lower(graph, TARGETS["llvm"], storages="canonical")  # frames and channels that fill up take more
    needed = sum(int(np.prod(node.type.shape)) * (4 if node.type.dtype.bits == 32 else 1) for node in graph)
    assert 0 < lowered.planned_bytes < needed


def test_planned_memory_follows_what_is_stored() -> None:
    graph = integers_of("Residual")
    lowered = {storages: lower(graph, TARGETS["llvm"], storages=storages) for storages in PALETTES}
    for found in lowered.values():
        sizes = [found.plan.storages[name].size_bytes(type, 1) for name, type in graph.types.items()]
        assert max(sizes) <= found.planned_bytes < sum(sizes)
    assert lowered["channels_last"].planned_bytes > lowered["canonical"].planned_bytes
    assert lowered["all"].plan.cost <= min(found.plan.cost for found in lowered.values())
    assert all(found.plan.exact for found in lowered.values())


def test_an_unknown_palette() -> None:
    with pytest.raises(CompileError, match="unknown palette of storages 'nhwc'; known: all, canonical, channels_last"):
        lower(integers_of("Residual"), TARGETS["llvm"], storages="nhwc")


def test_the_library_describes_its_storages_and_conversions(tmp_path: Path) -> None:
    """Flatten reads canonical bytes, so what a pool makes in the machine's own storage is copied for it first."""
    graph = integers_of("Ends")
    module = compiled(graph, tmp_path, storages="channels_last")
    info = LibraryInfo.read(tmp_path / "model.llvm.so")
    assert info == module.info
    assert set(info.conversions) <= set(info.calls)
    (back,) = (item for item in info.conversions.values() if item.storage == Storage())
    machine = Machine.resolve(TARGETS["llvm"])
    own = alternatives_of(graph, machine.target, machine.vector_bits, machine.features)
    assert info.values[back.value].storage == own[back.value]
    assert back.kernel == "convert_generic"
    for call, item in info.conversions.items():
        readers = [node.name for node in graph if item.value in node.inputs]
        if item.value in info.calls:
            assert info.calls.index(item.value) < info.calls.index(call), "made before it is copied"
        assert all(info.calls.index(call) < info.calls.index(name) for name in readers if name in info.calls)
    assert list(module.call_times(integer_samples(graph, 1))) == list(info.calls)
    calls = stored_values(info)
    assert [call.value for call in calls if call.conversion] == [item.value for item in info.conversions.values()]
    assert {call.value: call.storage for call in calls if not call.conversion} == {
        name: str(info.values[name].storage) for name in info.kernels
    }


@pytest.mark.parametrize("damage", [{"order": "CWHN"}, {"frame": 3}, {"blocks": 1}])
def test_a_description_with_a_storage_that_is_none(damage: dict[str, Any], library: Path) -> None:
    beside = LibraryInfo.path_beside(library)
    data = json.loads(beside.read_text())
    data["values"]["stem"]["storage"] |= damage
    beside.write_text(json.dumps(data))
    with pytest.raises(RuntimeModuleError, match="is corrupted"):
        CompiledModule(library)


def test_the_host_cpu_is_detected_and_named() -> None:
    lowered = lower(integers_of("Residual"), TARGETS["llvm"])
    assert lowered.machine.cpu not in ("", "native", "generic")
    assert lowered.machine.cpu in str(lowered.machine.tvm_target)
    assert lower(integers_of("Residual"), TARGETS["llvm/portable"]).machine.cpu == ""


def test_the_library_runs_with_the_tvm_runtime_alone(tmp_path: Path) -> None:
    graph = integers_of("Residual", MIXED)
    compiled(graph, tmp_path)
    x = integer_samples(graph)
    values = interpreter.run(graph, x)
    np.savez(tmp_path / "io.npz", x=x, y=values[graph.output], inner=values["conv1"])
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from hawq_tvm.backends.tvm.runtime import CompiledModule\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "io = np.load(folder / 'io.npz')\n"
        "module = CompiledModule(folder / 'model.llvm.so')\n"
        "assert np.array_equal(module.run(io['x']), io['y'])\n"
        "assert np.array_equal(module.values(io['x'])['conv1'], io['inner'])\n"
        "loaded = open('/proc/self/maps').read()\n"
        "assert 'libtvm_runtime' in loaded, 'the runtime is there'\n"
        "assert 'libtvm_compiler' not in loaded and 'libtvm.so' not in loaded, 'the compiler is not'\n"
        "heavy = {'onnx', 'onnxruntime', 'hawq_tvm.backends.tvm.lower', 'hawq_tvm.frontend.capture'}\n"
        "assert not heavy & set(sys.modules)\n"
        "print('exact')\n"
    )
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert result.stdout.strip() == "exact", result.stderr


def test_a_library_compiled_anew_at_the_same_path_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    first = compiled(integers_of("Residual"), tmp_path)
    second = compiled(integers_of("Residual", ("w4a4",)), tmp_path)
    for module, graph in ((first, integers_of("Residual")), (second, integers_of("Residual", ("w4a4",)))):
        x = integer_samples(graph)
        assert np.array_equal(module.run(x), interpreter.run(graph, x)["fc"])


def test_call_times_cover_every_kernel(tmp_path: Path) -> None:
    graph = integers_of("Residual")
    module = compiled(graph, tmp_path)
    times = module.call_times(integer_samples(graph, 2))
    computed = [name for name in times if name not in module.info.conversions]
    assert computed == [node.name for node in graph if node.op.kind != "flatten"]
    assert all(seconds > 0 for seconds in times.values())


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    graph = integers_of("Residual")
    module = compiled(graph, tmp_path)
    x = integer_samples(graph)
    with pytest.raises(DataError, match=r"the input has the shape \(4, 3, 12, 11\), expected \[N, 3, 12, 12\]"):
        module.run(x[:, :, :, :11])
    with pytest.raises(DataError, match="the input has dtype int64, expected int8"):
        module.run(x.astype(np.int64))
    for use in (module.run, module.values, module.call_times):
        with pytest.raises(DataError, match="the input holds no sample"):
            use(x[:0])
    with pytest.raises(DataError, match="the input holds 2 samples, expected the library's batch of 1"):
        module.prepare(x[:2])


def test_integers_out_of_the_input_range_are_refused(tmp_path: Path) -> None:
    """The overflow proof assumes the range: an s4 input never holds 127."""
    module = compiled(integers_of("Residual", ("w4a4",)), tmp_path)
    assert repr(module.input_type.dtype) == "s4"
    x = np.full((2, 3, 12, 12), 7, np.int8)
    module.run(x)
    x[1, 2, 3, 4] = 127
    for use in (module.run, module.values, module.prepare):
        with pytest.raises(DataError, match=r"the input holds 7\.\.127, more than s4 can"):
            use(x)


# bad libraries and machines


@pytest.fixture
def library(tmp_path: Path) -> Path:
    build_library(lower(integers_of("Residual"), TARGETS["llvm"]), tmp_path / "model.llvm.so")
    return tmp_path / "model.llvm.so"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_library(library: Path, share: float) -> None:
    data = library.read_bytes()
    library.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RuntimeModuleError, match="corrupted or truncated"):
        CompiledModule(library)


def test_a_library_with_a_flipped_bit(library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)
    with pytest.raises(RuntimeModuleError, match="corrupted or truncated"):
        CompiledModule(library)


def test_a_missing_library_or_description(library: Path) -> None:
    beside = LibraryInfo.path_beside(library)
    text = beside.read_text()
    beside.write_text(text[:100])
    with pytest.raises(RuntimeModuleError, match="is corrupted"):
        CompiledModule(library)
    beside.unlink()
    with pytest.raises(RuntimeModuleError, match=r"model.llvm.json is missing"):
        CompiledModule(library)
    beside.write_text(text)
    library.unlink()
    with pytest.raises(RuntimeModuleError, match="does not exist"):
        CompiledModule(library)


def test_a_library_for_a_better_cpu(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "instruction_sets", lambda: ["sse4_1"])
    with pytest.raises(
        RuntimeModuleError, match="which this one lacks; compile it here, or for --target llvm/portable"
    ):
        CompiledModule(library)


def test_a_library_for_another_architecture(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "architecture", lambda: "riscv64")
    with pytest.raises(RuntimeModuleError, match=r"for \w+ \(llvm\), and this machine is riscv64; compile"):
        CompiledModule(library)


def test_no_c_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = lower(integers_of("Residual"), TARGETS["llvm"])
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, *_: None)
    with pytest.raises(CompileError, match=r"no C compiler for \w+ found .* apt install g\+\+"):
        build_library(lowered, tmp_path / "model.llvm.so")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_linker_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "broken-c++"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'ld: final link failed: No space left on device' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(CompileError, match="compiling model.llvm.so failed: .*No space left on device"):
        build_library(lower(integers_of("Residual"), TARGETS["llvm"]), folder / "model.llvm.so")
    assert list(folder.iterdir()) == []


def test_the_linkers_own_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    monkeypatch.setenv("CXX", str(broken))
    lowered = lower(integers_of("Residual"), TARGETS["llvm"])
    for reason in ("/usr/bin/ld: final link failed: No space left on device", "/usr/bin/ld: cannot find -lm"):
        broken.write_text(f"#!/bin/sh\necho '{reason}'\necho 'collect2: error: ld returned 1 exit status'\nexit 1\n")
        broken.chmod(0o755)
        with pytest.raises(CompileError, match=f"compiling model.llvm.so failed: {reason}$"):
            build_library(lowered, tmp_path / "model.llvm.so")


@pytest.mark.parametrize("full", ["temporary", "destination"])
def test_a_disk_too_full_is_refused_before_llvm_ends_the_process(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = lower(integers_of("Residual"), TARGETS["llvm"])
    assert lowered.constant_bytes >= sum(op.weight.nbytes for op in weighted(lowered.graph))
    folder = tempfile.gettempdir() if full == "temporary" else str(tmp_path)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda at: real._replace(free=2**20 if at == folder else real.free))
    with pytest.raises(CompileError, match=f"needs about 4 MiB in {folder}, which has 1.0 MiB left .*make room there"):
        build_library(lowered, tmp_path / "model.llvm.so")
    assert list(tmp_path.iterdir()) == []


def weighted(graph: Graph) -> list[WeightedOperator]:
    return [node.op for node in graph if isinstance(node.op, WeightedOperator)]


def failing_kernel() -> BuiltKernel:
    raise RuntimeError("ScheduleError: no such block\nand forty lines of details")


def test_a_kernel_that_cannot_be_built_is_an_error_that_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def offer(request: Request) -> Offer | str:
        reads = tuple(Storage() for _ in request.inputs)
        return Offer(reads, Storage(), 0.0, failing_kernel) if request.node.name == "conv2" else "not mine"

    broken = Kernel("broken", offer)
    monkeypatch.setattr(registry, "KERNELS", (broken, *registry.KERNELS))
    message = (
        r"^layer 'conv2' \(conv2d\): kernel 'broken' cannot be built for target 'llvm': ScheduleError: no such block$"
    )
    with pytest.raises(CompileError, match=message):
        lower(integers_of("Residual"), TARGETS["llvm"])
    with pytest.raises(CompileError, match=message):
        measure_latency(candidates_of("Residual", Bits(8, 8)), TARGETS["llvm"])


def test_the_doctor_takes_a_command_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tmp_path / "nvidia-smi"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (check,) = (check for check in examine() if check.name == "NVIDIA GPU")
    assert not check.ok
    assert check.detail == f"{silent} says nothing; none found"


IMAGE, VECTOR = TensorType(IntType.parse("u8"), (4, 6, 6), 1.0), TensorType(IntType.parse("s8"), (8,), 1.0)
TWO, ONE = Rescale([2**30, 2**29], 30, -128, 127), Rescale([2**29], 30, -128, 127)
QUARTER = Rescale([2**28] * 4, 30, -128, 127)
FORMS: dict[str, tuple[Operator, list[TensorType]]] = {
    "conv2d": (
        Conv2d(np.arange(144).reshape(4, 4, 3, 3) % 5 - 2, 4, np.arange(4), QUARTER, Window((3, 3))), [IMAGE],
    ),
    "linear": (Linear(np.ones((4, 8)), 8, np.arange(4), QUARTER), [VECTOR]),
    "requantize": (Requantize(ONE), [IMAGE]),
    "add": (Add(TWO), [IMAGE, IMAGE]),
    "concat": (Concat(TWO), [IMAGE, IMAGE]),
    "max_pool2d": (MaxPool2d(Window((2, 2), (2, 2))), [replace(IMAGE, dtype=VECTOR.dtype)]),
    "avg_pool2d": (AvgPool2d(Window((2, 2)), Rescale([[2**27]], 30, -128, 127)), [IMAGE]),
    "global_avg_pool2d": (GlobalAvgPool2d(Rescale([2**24], 30, -128, 127)), [IMAGE]),
    "pad_channels": (PadChannels(1, 2), [replace(IMAGE, dtype=VECTOR.dtype)]),
    "flatten": (Flatten(), [replace(IMAGE, dtype=VECTOR.dtype)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPS)
def test_every_operator_has_its_form_in_every_back_end(kind: str, tmp_path: Path) -> None:
    """`docs/adding.md` lists the places; a row of `OPS` without one of them fails here."""
    op, inputs = FORMS[kind]
    graph = one_node_graph(op, inputs, VECTOR.dtype)
    x = random_integers(graph.input_type, 3)
    expected = interpreter.run(graph, x)
    assert len(np.unique(expected["layer"])) > 2, "the case tells something"
    onnx.save(to_onnx(graph), tmp_path / "model.onnx")
    assert read_onnx(tmp_path / "model.onnx").fingerprint() == graph.fingerprint()
    executors = {
        "PyTorch": IntegerModule(graph).run,
        "ONNX": OnnxRuntimeModule(to_onnx(graph)).run,
        "TVM": compiled(graph, tmp_path).values,
    }
    assert {name: same(expected, run(x)) for name, run in executors.items()} == {name: [] for name in executors}


def test_a_batch_of_none(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="at least one sample"):
        lower(integers_of("Residual"), TARGETS["llvm"], batch=0)
