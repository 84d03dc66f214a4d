"""Microseconds of every layer's kernel at every candidate bit pair, and of borders, timed on a device.

Kernels are compiled here, uploaded in one library, and timed there one after the other. Each time is kept as soon as it
is known, under a hash of all that decides it: the function itself, how it was compiled, how it was timed, and the
device. So a device that is lost in the middle costs what was not yet timed, and a second network of the same shapes
times nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm_ffi.serialization import to_json_graph_str

from hawq_tvm.backends.tvm.borders import Taken
from hawq_tvm.backends.tvm.build import compile_library
from hawq_tvm.backends.tvm.cache import read_entry, write_entry
from hawq_tvm.backends.tvm.chosen import Candidates, ChosenKernel
from hawq_tvm.backends.tvm.cuda.compiler import find_cuda_compiler
from hawq_tvm.backends.tvm.devices.messages import DeviceFacts, Job, Kernel, Kernels, Timed
from hawq_tvm.backends.tvm.devices.session import check_fit, look, perform, session_seconds
from hawq_tvm.backends.tvm.devices.worker import REPEAT_SECONDS, REPEATS
from hawq_tvm.backends.tvm.latency import LatencyTable, TableKernels
from hawq_tvm.backends.tvm.lower import Machine, build_kernel
from hawq_tvm.backends.tvm.timing import KernelTime
from hawq_tvm.core.devices import Device
from hawq_tvm.core.errors import DeviceError
from hawq_tvm.core.hashing import json_sha256
from hawq_tvm.core.specs import counted
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.core.targets import Target, architectures_of
from hawq_tvm.core.version import VERSION

_CACHE = "times"


@dataclass(frozen=True, eq=False)
class _Function:
    """A kernel, built.

    Attributes:
        title: what it computes, for messages.
        function: TVM's PrimFunc; its symbol is a hash of it.
        arguments: how to make what it is called with.
    """

    title: str
    function: Any
    arguments: Callable[[], list[Any]]

    @property
    def symbol(self) -> str:
        return str(self.function.attrs["global_symbol"])


@dataclass(frozen=True)
class Conditions:
    """What decides a time besides the function itself."""

    machine: Machine
    device: Device
    facts: DeviceFacts

    def key(self, symbol: str) -> str:
        """What a function's time is kept under."""
        gpu = self.machine.target.gpu is not None
        return json_sha256(
            {
                "function": symbol,
                "target": str(self.machine.tvm_target),
                "compiler": find_cuda_compiler().identity if gpu else "",
                "versions": [VERSION, str(tvm.__version__)],
                "method": [REPEATS, REPEAT_SECONDS],
                "device": asdict(self.facts),
                "address": "" if gpu else str(self.device),  # LLVM's name of a CPU is that of many products
            }
        )


def time_on_device(
    candidates: Candidates,
    target: Target,
    device: Device,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> LatencyTable:
    """Time each distinct kernel on a device, but for those whose time is kept.

    Args:
        candidates: the network and its bits.
        target: what kernels are chosen and compiled for.
        device: where they run.
        threads: of a CPU's kernels; None for as many as TVM gives there.
        progress: called with kernels timed and kernels in all.
        note: told what is worth reading meanwhile.

    Returns:
        The median of each kernel's repeats; no time at all where the device is an emulated one.

    Raises:
        CompileError: a kernel does not compile.
        DeviceError: the device is not there, does not fit, or is lost.
    """
    machine = Machine.resolve(target)
    facts = look(device, gpu=target.gpu is not None, threads=threads, note=note)
    check_fit(device, facts, target, machine.cpu)
    conditions = Conditions(machine, device, facts)
    kernels = TableKernels.of(candidates, machine)
    titles = {it.code: f"layer '{name}' at {pair}" for (name, pair), it in reversed([*kernels.layers.items()])}
    built = {code: _build(titles.get(code, chosen.title), chosen, machine) for code, chosen in kernels.distinct.items()}
    functions = {function.symbol: function for function in built.values()}
    kept = {symbol: read_time(conditions.key(symbol)) for symbol in functions}
    times = {symbol: taken for symbol, taken in kept.items() if taken is not None}
    before, drift = len(times), None
    for timed in _time([functions[symbol] for symbol in functions if symbol not in times], conditions, threads, note):
        if timed.name in times:  # the first one once more
            drift = float(np.median(timed.seconds) / np.median(times[timed.name].seconds))
            continue
        times[timed.name] = KernelTime(timed.seconds, timed.calls)
        if not facts.is_emulated:
            write_time(conditions.key(timed.name), times[timed.name])
        if progress is not None:
            progress(len(times), len(functions))
    where = f"{facts} at {device}"
    if facts.is_emulated:
        source = f"not measured: {len(times)} kernels ran on {where}, whose times say nothing of a GPU's"
        note(source)
        return LatencyTable({name: {} for name in candidates.layers}, source)
    gpu = target.gpu is not None
    source = ", ".join(
        [
            f"measured on {where}",
            f"target {target.name}",
            f"batch {candidates.batch}",
            *([] if gpu else [counted(facts.threads, "thread")]),
            "warm caches",
            f"median of {REPEATS} repeats of {REPEAT_SECONDS * 1e3:.0f} ms by TVM's time evaluator there",
            *(["each kernel launched by itself, call after call"] if gpu else []),
            "copies between layers likewise",
        ]
    )

    def taken(kernel: ChosenKernel) -> Taken:
        time = times[built[kernel.code].symbol]
        return Taken(time.median_us, time.spread_us)

    return kernels.table(taken, "measured", f"{source}; {'; '.join(_remarks(times, before, drift, gpu=gpu))}")


def _remarks(times: Mapping[str, KernelTime], before: int, drift: float | None, *, gpu: bool) -> Iterator[str]:
    """How sure the times are."""
    spreads = [high / low for low, high in (taken.spread_us for taken in times.values()) if low]
    if spreads:
        yield f"p90 per p10 {np.median(spreads):.2f}, at worst {max(spreads):.2f}"
    if drift is not None:
        yield f"the first kernel took {drift:.2f} times as long at the end"
    if gpu:
        yield "the clock that was held is not told over RPC"
    if before:
        yield f"{before} of {len(times)} kernels were timed before"


def _build(title: str, chosen: ChosenKernel, machine: Machine) -> _Function:
    built = build_kernel(chosen.title, chosen.kernel, chosen.offer.build, machine.target)
    symbol = f"kernel_{sha256(to_json_graph_str(built.function).encode()).hexdigest()[:32]}"
    return _Function(
        title,
        built.function.with_attr("global_symbol", symbol),
        lambda: chosen.arguments(built, np.random.default_rng(0)),
    )


def _time(
    functions: list[_Function], conditions: Conditions, threads: int | None, note: Callable[[str], None]
) -> Iterator[Timed]:
    """Compile, upload and time, and the first one once more."""
    if not functions:
        return
    device, machine = conditions.device, conditions.machine
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        compile_library(
            tvm.IRModule({function.symbol: function.function for function in functions}),
            machine.tvm_target,
            library,
            failure=f"a kernel does not compile for target '{machine.target.name}'",
            architectures=architectures_of(machine.target),
        )
        work = Kernels(library, tuple(_packed(function, Path(folder)) for function in functions))
        job = Job(device, machine.target.gpu is not None, threads, session_seconds(work), work)
        for answer in perform(job, note):
            if isinstance(answer, DeviceFacts) and answer != conditions.facts:
                raise DeviceError(
                    f"{device} was {conditions.facts} and is now {answer}: servers of one key must be alike; give each "
                    "kind of device a key of its own"
                )
            if isinstance(answer, Timed):
                yield answer


def _packed(function: _Function, folder: Path) -> Kernel:
    """A function's arguments in a file."""
    path = folder / f"{function.symbol}.npz"
    np.savez(path, *function.arguments())
    return Kernel(function.symbol, function.title, path)


def read_time(key: str) -> KernelTime | None:
    """A time that was kept; None where there is none, or something damaged."""
    parts = read_entry(_CACHE, key)
    if parts is None:
        return None
    reader = JsonReader("a kept time", DeviceError, "remove it")
    try:
        found: KernelTime = reader.take(reader.parse(parts[0]), KernelTime)
    except DeviceError:
        return None
    return found


def write_time(key: str, taken: KernelTime) -> None:
    write_entry(_CACHE, key, json.dumps(asdict(taken)).encode())
