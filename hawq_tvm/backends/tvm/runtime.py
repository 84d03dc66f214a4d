"""A compiled library, loaded and run with the TVM runtime alone: no compiler, no PyTorch, no ONNX.

TVM reads the number of its threads when its pool starts, and counts half of the cores where it suspects hyper-threads;
importing this module sets TVM_NUM_THREADS to all usable cores, unless the environment says otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hawq_tvm.backends.tvm.host import instruction_sets, usable_cores
from hawq_tvm.core.errors import DataError, GraphError, RuntimeModuleError
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.interpreter import check_integers
from hawq_tvm.core.ir import Array, IntType, TensorType
from hawq_tvm.core.storage import Storage, unpack

os.environ.setdefault("TVM_NUM_THREADS", str(usable_cores()))

import tvm_ffi
from tvm import cpu
from tvm.runtime import load_module, tensor
from tvm.runtime.vm import VirtualMachine


@dataclass(frozen=True)
class ValueInfo:
    """One value of the graph: its integer type, the shape of a sample, its scale, and how its kernel stores it."""

    dtype: str
    shape: tuple[int, ...]
    scale: float
    storage: Storage

    @property
    def type(self) -> TensorType:
        return TensorType(IntType.parse(self.dtype), self.shape, self.scale)


@dataclass(frozen=True)
class ConversionInfo:
    """A call that copies a value into another storage, and the kernel that does."""

    value: str
    storage: Storage
    kernel: str


@dataclass(frozen=True)
class LibraryInfo:
    """What a compiled library holds; the JSON beside it.

    Attributes:
        target: the target's name.
        cpu: LLVM's name of the CPU it was compiled for; empty for a portable one.
        instruction_sets: what that CPU had; a machine without them must not run the library.
        batch: samples a call.
        input_name: the input value.
        output_name: the output value.
        values: every value.
        calls: every kernel call in order, by a name: the value that it makes, or a name of `conversions`.
        conversions: the calls that only copy a value into another storage.
        views: values that are views of another, by name.
        kernels: the kernel that makes each value.
        declines: why kernels that stand earlier in the table were not taken, by node.
        exact_storages: whether the choice of storages is proved to cost least.
        planned_bytes: activation memory.
        fingerprint: of the integer graph.
        tvm: the version that compiled it.
        sha256: of the library file.
    """

    target: str
    cpu: str
    instruction_sets: tuple[str, ...]
    batch: int
    input_name: str
    output_name: str
    values: Mapping[str, ValueInfo]
    calls: tuple[str, ...]
    conversions: Mapping[str, ConversionInfo]
    views: Mapping[str, str]
    kernels: Mapping[str, str]
    declines: Mapping[str, tuple[str, ...]]
    exact_storages: bool
    planned_bytes: int
    fingerprint: str
    tvm: str
    sha256: str

    @property
    def call_kernels(self) -> dict[str, str]:
        """The kernel of each call, by the names in `calls`."""
        conversions = {name: conversion.kernel for name, conversion in self.conversions.items()}
        return {name: conversions.get(name) or self.kernels[name] for name in self.calls}

    @staticmethod
    def path_beside(library: Path) -> Path:
        """Where the JSON of a library lies."""
        return library.with_suffix(".json")

    def write(self, library: Path) -> None:
        """Write the JSON beside the library."""
        self.path_beside(library).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, library: Path) -> LibraryInfo:
        """Read the JSON beside the library.

        Raises:
            RuntimeModuleError: it is missing or not ours.
        """
        path = cls.path_beside(library)
        try:
            data = json.loads(path.read_text())
            data["values"] = {
                name: ValueInfo(
                    value["dtype"], tuple(value["shape"]), value["scale"], Storage.from_json(value["storage"])
                )
                for name, value in data["values"].items()
            }
            data["conversions"] = {
                name: ConversionInfo(item["value"], Storage.from_json(item["storage"]), item["kernel"])
                for name, item in data["conversions"].items()
            }
            for key in ("instruction_sets", "calls"):
                data[key] = tuple(data[key])
            return cls(**data)
        except FileNotFoundError:
            raise RuntimeModuleError(f"{path} is missing: a library needs the JSON file it was compiled with") from None
        except (ValueError, KeyError, TypeError, AttributeError, GraphError) as error:
            raise RuntimeModuleError(f"{path} is corrupted ({error}); compile the library again") from None


def _load(library: Path) -> Any:
    """Load a copy with a name of its own.

    For a path that it knows, the system's loader would hand out the library that lay there before.
    """
    with tempfile.TemporaryDirectory() as folder:
        return load_module(shutil.copy(library, folder))


def configure_threads(count: int) -> None:
    """Let compiled libraries use `count` threads from now on.

    Raises:
        RuntimeModuleError: more than TVM_NUM_THREADS, which bounds the pool since it started.
    """
    tvm_ffi.get_global_func("runtime.config_threadpool")(1, count)
    granted = int(tvm_ffi.get_global_func("runtime.NumThreads")())
    if granted != count:
        raise RuntimeModuleError(
            f"TVM grants {granted} threads instead of {count}; set TVM_NUM_THREADS={count} before Python starts"
        )


class CompiledModule:
    """A library in memory, ready to run on batches of any size."""

    def __init__(self, library: Path) -> None:
        """Load a library that `hawq_tvm.backends.tvm.lower.build_library` wrote.

        Args:
            library: path of the ``.so``; its JSON lies beside it.

        Raises:
            RuntimeModuleError: missing, corrupted, truncated, or compiled for a CPU with more instruction sets.
        """
        self.info = LibraryInfo.read(library)
        if not library.exists():
            raise RuntimeModuleError(f"{library} does not exist; compile the run first")
        if file_sha256(library) != self.info.sha256:  # before dlopen, which may crash on a truncated file
            raise RuntimeModuleError(
                f"{library} is corrupted or truncated: its sha256 does not match; compile it again"
            )
        lacking = sorted(set(self.info.instruction_sets) - set(instruction_sets()))
        if lacking:
            raise RuntimeModuleError(
                f"{library} was compiled for a CPU ({self.info.cpu}) with {', '.join(lacking)}, which this one lacks; "
                "compile it here, or for --target llvm/portable"
            )
        try:
            self._vm = VirtualMachine(_load(library), cpu())
        except Exception as error:  # TVM raises many unrelated kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RuntimeModuleError(f"{library} cannot be loaded: {reason}") from error
        self._main = self._vm["main"]

    @property
    def input_type(self) -> TensorType:
        return self.info.values[self.info.input_name].type

    @property
    def output_type(self) -> TensorType:
        return self.info.values[self.info.output_name].type

    def run(self, x: Array) -> Array:
        """The output's integers.

        Args:
            x: [N, ...] in the carrier dtype of the input; N need not be the library's batch.

        Returns:
            [N, ...] in the carrier dtype of the output.

        Raises:
            DataError: a wrong shape or dtype, no sample at all, or integers out of the input type's range.
        """
        return np.concatenate([self._main(tensor(part)).numpy()[:count] for part, count in self._batches(x)])

    def values(self, x: Array) -> dict[str, Array]:
        """Every value's integers, tapped from the running library call by call, whatever its storage.

        Args:
            x: as `run` takes it.

        Returns:
            Arrays [N, ...] in their carrier dtypes, by name, the input's first.
        """
        stored = self.stored(x)
        made = {self.info.input_name: x}
        for name in self.info.calls:
            if name not in self.info.conversions:
                made[name] = unpack(stored[name], self.info.values[name].type, self.info.values[name].storage)
        for view, source in self.info.views.items():
            made[view] = made[source].reshape(len(x), *self.info.values[view].shape)
        return {name: made[name] for name in self.info.values}

    def stored(self, x: Array) -> dict[str, Array]:
        """What every call of the running library writes, as it lies in memory, padding included.

        Args:
            x: as `run` takes it.

        Returns:
            By the names of `LibraryInfo.calls`, arrays [N, ...] as `hawq_tvm.core.storage.pack` makes them of the
            value that the call makes or copies.
        """
        parts: dict[str, list[Array]] = {name: [] for name in self.info.calls}
        calls: Iterator[str] = iter(())
        count = 0

        def keep(output: Any) -> None:
            parts[next(calls)].append(output.numpy()[:count].copy())

        with self._instrument(after=keep):
            for part, size in self._batches(x):
                calls, count = iter(self.info.calls), size
                self._main(tensor(part))
        return {name: np.concatenate(pieces) for name, pieces in parts.items()}

    def call_times(self, x: Array) -> dict[str, float]:
        """Seconds of each kernel call, summed over the batches that `x` is cut into, by name of the value it makes."""
        times = dict.fromkeys(self.info.calls, 0.0)
        calls: Iterator[str] = iter(())
        started = 0.0

        def start() -> None:
            nonlocal started
            started = time.perf_counter()

        def stop(_output: Any) -> None:
            elapsed = time.perf_counter() - started
            times[next(calls)] += elapsed

        with self._instrument(before=start, after=stop):
            for part, _ in self._batches(x):
                calls = iter(self.info.calls)
                self._main(tensor(part))
        return times

    def prepare(self, x: Array) -> Callable[[], None]:
        """A call without arguments that runs one batch already in TVM's memory: what latency is measured on.

        Args:
            x: exactly the library's batch.

        Raises:
            DataError: as `run`, or another batch.
        """
        check_integers(x, self.input_type)
        if len(x) != self.info.batch:
            raise DataError(f"the input holds {len(x)} samples, expected the library's batch of {self.info.batch}")
        resident = tensor(x)
        return lambda: self._main(resident)

    def _batches(self, x: Array) -> Iterator[tuple[Array, int]]:
        """The batches that `x` is cut into, the last filled up, each with the number of its samples."""
        check_integers(x, self.input_type)
        if not len(x):
            raise DataError("the input holds no sample; give it at least one")
        size = self.info.batch
        for start in range(0, len(x), size):
            part = x[start : start + size]
            count = len(part)
            if count < size:
                part = np.concatenate([part, np.zeros((size - count, *part.shape[1:]), part.dtype)])
            yield np.ascontiguousarray(part), count

    @contextmanager
    def _instrument(
        self, *, before: Callable[[], None] | None = None, after: Callable[[Any], None] | None = None
    ) -> Iterator[None]:
        """Call back around every kernel; builtins of the virtual machine are passed over."""

        def callback(_function: Any, name: str, before_run: bool, _result: Any, *arguments: Any) -> int:
            if not name.startswith("vm.builtin"):
                if before_run and before is not None:
                    before()
                elif not before_run and after is not None:
                    after(arguments[-1])
            return 0

        self._vm.set_instrument(callback)
        try:
            yield
        finally:
            self._vm.set_instrument(lambda *_: 0)
