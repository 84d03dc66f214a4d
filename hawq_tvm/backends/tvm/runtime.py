"""A compiled library, loaded and run with the TVM runtime alone: no compiler, no PyTorch, no ONNX.

A library for a GPU runs on the first one; `hawq_tvm.backends.tvm.cuda.device` looks at that before TVM does.

One module may be called from many threads. Each call has a virtual machine to itself, of those that the module keeps;
the library, its constants and its code are there once.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from tvm import cpu, cuda
from tvm.base import _LOADED_LIBS
from tvm.runtime import tensor
from tvm.runtime.vm import VirtualMachine

from hawq_tvm.backends.tvm.cuda.device import check_device
from hawq_tvm.backends.tvm.host import architecture, instruction_sets
from hawq_tvm.backends.tvm.info import MAIN, REALS, TAPPED, LibraryInfo
from hawq_tvm.backends.tvm.workers import check_not_forked, placed_threads, shares_work
from hawq_tvm.backends.tvm.workers import configure_threads as configure_threads
from hawq_tvm.core.errors import DataError, HawqError, RuntimeModuleError, first_line
from hawq_tvm.core.hashing import file_sha256
from hawq_tvm.core.interpreter import NOT_FINITE, check_batch, check_integers, dequantize_output, quantize_input
from hawq_tvm.core.ir import Array, TensorType
from hawq_tvm.core.storage import unpack


def load_library(library: Path) -> Any:
    """Load a copy with a name of its own; it is unloaded with the last of its functions.

    For a path that it knows, the system's loader would hand out the library that lay there before.
    """
    with tempfile.TemporaryDirectory() as folder:
        return tvm_ffi.load_module(shutil.copy(library, folder), keep_module_alive=False)


def load_cuda_runtime() -> None:
    """TVM's part for GPUs, which it loads by itself where all that it is linked with lies where the loader looks."""
    if tvm_ffi.get_global_func("ffi.Module.load_from_bytes.cuda", allow_missing=True) is None:
        beside = Path(_LOADED_LIBS["tvm_runtime"]._name)
        ctypes.CDLL(str(beside.with_name("libtvm_runtime_cuda.so")), ctypes.RTLD_GLOBAL)


_GPU = threading.RLock()
"""Held by the thread that works with the GPU; see `CompiledModule._turn`."""


class CompiledModule:
    """A library in memory, ready to run on batches of any size, from any number of threads at once.

    It can be pickled: what unpickles it loads the same library from the same place. A process that is forked after a
    library has run refuses to run one; processes are to be started by ``spawn``.
    """

    def __init__(self, library: Path) -> None:
        """Load a library that `hawq_tvm.backends.tvm.build.build_library` wrote.

        Args:
            library: path of the ``.so``; its JSON lies beside it.

        Raises:
            RuntimeModuleError: missing, corrupted, truncated, compiled for a CPU with more instruction sets, or for a
                GPU that is not here.
        """
        self.info = LibraryInfo.read(library)
        if not library.exists():
            raise RuntimeModuleError(f"{library} does not exist; compile the run first")
        if file_sha256(library) != self.info.sha256:  # before dlopen, which may crash on a truncated file
            raise RuntimeModuleError(
                f"{library} is corrupted or truncated: its sha256 does not match; compile it again"
            )
        if self.info.architecture != architecture():
            raise RuntimeModuleError(
                f"{library} was compiled for {self.info.architecture} ({self.info.target}), and this machine is "
                f"{architecture()}; compile it here, or for a target of this architecture"
            )
        lacking = sorted(set(self.info.instruction_sets) - set(instruction_sets()))
        if lacking:
            raise RuntimeModuleError(
                f"{library} was compiled for a CPU ({self.info.cpu}) with {', '.join(lacking)}, which this one lacks; "
                "compile it here, or for --target llvm/portable"
            )
        if self.info.gpu is not None:
            check_device(library, self.info.gpu)
        self._shares_work = shares_work(library)
        self.path = library.absolute()
        try:
            if self.info.gpu is not None:
                load_cuda_runtime()
            self._device = cpu() if self.info.gpu is None else cuda(0)
            with _GPU:
                self._library = load_library(library)
                self._idle = [self._machine()]  # virtual machines that no call is using
        except Exception as error:  # TVM raises many unrelated kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RuntimeModuleError(f"{library} cannot be loaded: {reason}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, (self.path, self.info.sha256)

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
            RuntimeModuleError: this process was forked from one in which a library had run, or the GPU fails.
        """
        check_integers(x, self.input_type)
        with self._turn():
            return _joined([self._on_host(self._call(self._on_device(part)))[:n] for part, n in self._batches(x)])

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reals in, reals out: what `quantize_input`, `run` and `dequantize_output` give, bit for bit.

        On a CPU the library does all of it, on all of its threads.

        Args:
            x: float32 [N, ...], finite; N need not be the library's batch.

        Returns:
            float32 [N, ...].

        Raises:
            DataError: a wrong shape or dtype, no sample at all, NaN or infinity.
            RuntimeModuleError: as `run`.
        """
        if x.dtype != np.float32:
            raise DataError(f"the input has dtype {x.dtype}, expected float32")
        if self.info.gpu is not None:
            return dequantize_output(self.run(quantize_input(x, self.input_type)), self.output_type)
        check_batch(x, self.input_type)
        try:
            with self._turn():
                return _joined([self._on_host(self._call(_in_place(part), REALS))[:n] for part, n in self._batches(x)])
        except ValueError as error:
            if NOT_FINITE in str(error):
                raise DataError(NOT_FINITE) from None
            raise

    def values(self, x: Array) -> dict[str, Array]:
        """Every value's integers, tapped from the running library call by call, whatever its storage.

        Args:
            x: as `run` takes it.

        Returns:
            Arrays [N, ...] in their carrier dtypes, by name, the input's first.
        """
        stored = self.stored(x)
        made = {self.info.input_name: x}
        written = {name: name for name in self.info.calls if name not in self.info.conversions}
        for name, call in {**written, **self.info.joins}.items():
            made[name] = unpack(stored[call], self.info.values[name].type, self.info.values[name].storage)
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
        check_integers(x, self.input_type)
        parts: dict[str, list[Array]] = {name: [] for name in self.info.calls}
        calls: Iterator[str] = iter(())
        count = 0

        def keep(output: Any) -> None:
            parts[next(calls)].append(output.numpy()[:count].copy())

        with self._turn():
            main = self._tapped(after=keep)
            for part, size in self._batches(x):
                calls, count = iter(self.info.calls), size
                main(self._on_device(part))
        return {name: np.concatenate(pieces) for name, pieces in parts.items()}

    def call_times(self, x: Array) -> dict[str, float]:
        """Seconds of each kernel call, summed over the batches that `x` is cut into, by name of the value it makes."""
        check_integers(x, self.input_type)
        times = dict.fromkeys(self.info.calls, 0.0)
        calls: Iterator[str] = iter(())
        started = 0.0

        def start() -> None:
            nonlocal started
            self._finish()
            started = time.perf_counter()

        def stop(_output: Any) -> None:
            self._finish()
            elapsed = time.perf_counter() - started
            times[next(calls)] += elapsed

        with self._turn():
            main = self._tapped(before=start, after=stop)
            for part, _ in self._batches(x):
                calls = iter(self.info.calls)
                main(self._on_device(part))
        return times

    def visit_calls(self, x: Array, visit: Callable[[str, Callable[[], None]], None]) -> None:
        """Run one batch, and show every kernel call as it was made, so that it can be made again: to time it alone.

        Args:
            x: exactly the library's batch.
            visit: called after each call with the name of the value that it makes, and with a function that makes the
                same call once more, on the same memory; it does not wait for a GPU.

        Raises:
            DataError: as `run`, or another batch.
        """
        names = iter(self.info.calls)

        def show(call: Callable[[], None]) -> None:
            visit(next(names), call)

        with self._turn():
            self._tapped(again=show)(self._on_device(self._one_batch(x)))

    def prepare(self, x: Array, *, calls: int = 1) -> Callable[[], None]:
        """A call without arguments that runs one batch already in TVM's memory: what latency is measured on.

        Args:
            x: exactly the library's batch.
            calls: how often; a GPU is waited for once, after the last.

        Raises:
            DataError: as `run`, or another batch.
        """
        with self._turn():
            resident = self._on_device(self._one_batch(x))

        def call() -> None:
            with self._turn():
                for _ in range(calls):
                    self._call(resident)
                self._finish()

        return call

    def _one_batch(self, x: Array) -> Array:
        check_integers(x, self.input_type)
        if len(x) != self.info.batch:
            raise DataError(f"the input holds {len(x)} samples, expected the library's batch of {self.info.batch}")
        return x

    def _batches(self, x: Array) -> Iterator[tuple[Array, int]]:
        """The batches that `x` is cut into, the last filled up, each with the number of its samples."""
        if not len(x):
            raise DataError("the input holds no sample; give it at least one")
        size = self.info.batch
        for start in range(0, len(x), size):
            part = x[start : start + size]
            count = len(part)
            if count < size:
                part = np.concatenate([part, np.zeros((size - count, *part.shape[1:]), part.dtype)])
            yield np.ascontiguousarray(part), count

    def _machine(self) -> Any:
        """A virtual machine over the library, with registers of its own; the constants are shared."""
        return VirtualMachine(self._library, self._device)

    def _finish(self) -> None:
        """Wait for the GPU, which works while the call that asked it to has returned."""
        if self.info.gpu is not None:
            self._device.sync()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """On a CPU each thread in its place; on a GPU one call after the other, what fails there told in one sentence.

        While one thread records its calls as a graph, CUDA refuses what other threads ask for, and the record is lost.
        """
        if self.info.gpu is None:
            with placed_threads() if self._shares_work else nullcontext():
                yield
            return
        with _GPU:
            try:
                yield
            except HawqError:
                raise
            except Exception as error:  # TVM raises many unrelated kinds
                raise RuntimeModuleError(f"{self.path} fails on the GPU: {first_line(error)}") from error

    def _on_device(self, x: Array) -> Any:
        """A batch in the memory of the device that computes it."""
        return tensor(x, self._device)

    def _on_host(self, y: Any) -> Array:
        """A call's result; of a CPU the memory that it lies in, which nothing else uses any more."""
        return np.from_dlpack(y) if self.info.gpu is None else y.numpy()

    def _call(self, x: Any, function: str = MAIN) -> Any:
        """One call on a machine that no other thread is using; as many are made as calls ever overlap."""
        check_not_forked()
        try:
            machine = self._idle.pop()
        except IndexError:
            machine = self._machine()
        try:
            return machine[function](x)
        finally:
            self._idle.append(machine)

    def _tapped(
        self,
        *,
        before: Callable[[], None] | None = None,
        after: Callable[[Any], None] | None = None,
        again: Callable[[Callable[[], None]], None] | None = None,
    ) -> Callable[[Any], Any]:
        """The main function of a new machine that calls back around every kernel; its builtins are passed over.

        `after` is given what the kernel wrote, and `again` a function that calls the kernel once more.

        No other call sees the machine: taps would slow it down for good, since TVM knows no way to take them off.
        """

        def callback(function: Any, name: str, before_run: bool, _result: Any, *arguments: Any) -> int:
            if not name.startswith("vm.builtin"):
                if before_run and before is not None:
                    before()
                if not before_run and after is not None:
                    after(arguments[-1])
                if not before_run and again is not None:
                    again(lambda: function(*arguments))
            return 0

        check_not_forked()
        machine = self._machine()
        machine.set_instrument(callback)
        main: Callable[[Any], Any] = machine[MAIN if self.info.gpu is None else TAPPED]
        return main


def _in_place(x: NDArray[np.float32]) -> Any:
    """An array as TVM takes it, where it lies; a copy of one that is not to be written, which numpy does not lend."""
    return tvm_ffi.from_dlpack(x) if x.flags.writeable else tensor(x, cpu())


def _joined(parts: list[Array]) -> Array:
    """Batches as one array."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _load_again(path: Path, sha256: str) -> CompiledModule:
    """Unpickle.

    Raises:
        RuntimeModuleError: as `CompiledModule`, or another library lies there now.
    """
    module = CompiledModule(path)
    if module.info.sha256 != sha256:
        raise RuntimeModuleError(f"{path} was compiled anew since this module was pickled; load it and pickle it again")
    return module
