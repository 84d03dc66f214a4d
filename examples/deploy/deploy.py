"""Classify images with a compiled library, with TVM's runtime, numpy and Pillow alone: no compiler, no hawq_tvm.

    python deploy.py model.nvidia-t4.so cat.jpg dog.jpg
    python deploy.py model.nvidia-t4.so cat.jpg --rpc t4.local:9090          # on the GPU of another machine
    python deploy.py model.nvidia-t4.so cat.jpg --rpc tracker.local:9190/t4  # on one that a tracker gives out

The library's JSON must lie beside it: it says how an image becomes the network's integers. A library for a CPU runs as
well. `docs/t4.md` tells how to come here.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")  # TVM's compiler, 250 MB, stays unloaded

CUDA_LIBRARIES = ("libcuda.so.1", "libcudart.so.13")
"""The driver, and the CUDA runtime that TVM's part for GPUs is linked with."""

SESSION_SECONDS = 600
"""After which a server ends our session, so that a client which vanished does not hold its device."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("library", type=Path, help="model.TARGET.so, its JSON beside it")
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    parser.add_argument("--rpc", metavar="HOST:PORT[/KEY]", help="TVM's RPC server, or a tracker and the server's key")
    parser.add_argument("--runs", type=int, default=20, help="timed calls of a batch (default: 20)")
    parser.add_argument("--integers", action="store_true", help="print the network's integers too")
    parser.add_argument("--write-ppm", type=Path, help="only write the first image, resized, for the C++ example")
    arguments = parser.parse_args()
    info = read_json(arguments.library.with_suffix(".json"))
    check_whole(arguments.library, info)
    if arguments.write_ppm:
        resized(arguments.images[0], image_rule(info)["resize"]).save(arguments.write_ppm, "PPM")
        return
    pixels = np.stack([centre_crop(image, info) for image in arguments.images])
    x = quantize(pixels, info)
    network = (
        RemoteNetwork(arguments.library, info, arguments.rpc) if arguments.rpc else Network(arguments.library, info)
    )
    scale = info["values"][info["output_name"]]["scale"]
    for start in range(0, len(x), info["batch"]):
        part = x[start : start + info["batch"]]
        integers, milliseconds = network.run(part, arguments.runs)
        for image, row in zip(arguments.images[start:], integers.reshape(len(part), -1), strict=False):
            print(f"{image}: class {row.argmax()}, logit {row.max() * scale:.4f}")
            if arguments.integers:
                print("integers:", *row)
        print(f"{milliseconds:.3f} ms a call of batch {info['batch']} on {network.where}, median of {arguments.runs}")


def read_json(path: Path) -> Any:
    """What the library's JSON says."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path} cannot be read ({error}); copy it with the library, as hawq-tvm compile wrote it")


def check_whole(library: Path, info: Any) -> None:
    """Refuse a library that was damaged on its way: the system's loader may crash on a truncated one."""
    try:
        whole = hashlib.sha256(library.read_bytes()).hexdigest() == info["sha256"]
    except OSError as error:
        sys.exit(f"error: {library} cannot be read: {error}")
    if not whole:
        sys.exit(f"error: {library} is corrupted or truncated: its sha256 is not the one in the JSON; copy it again")


# ---- from an image to the network's integers -------------------------------------------------------------------------


def image_rule(info: Any) -> Any:
    """How images become inputs: torchvision's evaluation transform."""
    if not info.get("image"):
        sys.exit("error: the library's JSON does not say how an image becomes its input; compile a run of image files")
    return info["image"]


def resized(path: Path, side: int) -> Image.Image:
    """An image file in RGB, its short side resized, the long side truncated as torchvision does."""
    try:
        image: Image.Image = Image.open(path).convert("RGB")
    except OSError as error:
        sys.exit(f"error: {path} is no image that can be read: {error}")
    width, height = image.size
    short = min(width, height)
    size = (side, side * height // width) if width <= height else (side * width // height, side)
    return image if short == side else image.resize(size, Image.Resampling.BILINEAR)


def centre_crop(path: Path, info: Any) -> np.ndarray[Any, Any]:
    """Pixels uint8 [3, H, W] of an image file."""
    rule = image_rule(info)
    image = resized(path, rule["resize"])
    side = rule["crop"]
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side))).transpose(2, 0, 1)


def quantize(pixels: np.ndarray[Any, Any], info: Any) -> np.ndarray[Any, Any]:
    """The network's integers [N, 3, H, W] of pixels uint8: normalised in float32, divided by the scale in float64.

    An integer is ``clip(floor(x / scale + 1/2), lo, hi)``; `docs/arithmetic.md` derives it.
    """
    rule, value = info["image"], info["values"][info["input_name"]]
    mean, std = (np.float32(rule[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    normal = (pixels.astype(np.float32) / 255 - mean) / std
    signed, bits = value["dtype"][0] == "s", int(value["dtype"][1:])
    lo = -(2 ** (bits - 1)) if signed else 0
    rounded = np.floor(normal.astype(np.float64) / value["scale"] + 0.5)
    return np.clip(rounded, lo, lo + 2**bits - 1).astype(np.int8 if signed else np.uint8)


# ---- the network -----------------------------------------------------------------------------------------------------


def load_tvm() -> Any:
    """TVM's runtime."""
    import tvm.runtime.vm

    return tvm


def place_threads() -> None:
    """A thread on each core that this process may use, or TVM_NUM_THREADS of them.

    TVM itself takes half of the machine's cores, binds its workers to the first of them, and lets this thread run
    where a worker is, so that the two take turns.
    """
    import tvm_ffi

    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    threads = int(os.environ.get("TVM_NUM_THREADS", len(cores)))
    one_a_core, shared = -2, -3
    each = threads == len(cores)
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    configure(one_a_core if each else shared, threads, [str(core) for core in cores])
    if each:
        os.sched_setaffinity(0, cores[:1])


def load_cuda(tvm: Any) -> None:
    """TVM's part for GPUs, which it loads by itself only where all that it is linked with is on the loader's path."""
    spec = importlib.util.find_spec("nvidia")  # pip install nvidia-cuda-runtime
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for name in CUDA_LIBRARIES:
        candidates = [name, *(str(found) for folder in folders for found in folder.glob(f"cu13/lib/{name}"))]
        if not any(map(loads, candidates)):
            sys.exit(f"error: {name} cannot be loaded, and the library runs on an NVIDIA GPU; see docs/t4.md")
    runtime = Path(tvm.base._LOADED_LIBS["tvm_runtime"]._name)
    ctypes.CDLL(str(runtime.with_name("libtvm_runtime_cuda.so")), ctypes.RTLD_GLOBAL)
    if not tvm.cuda(0).exist:
        sys.exit("error: the driver finds no NVIDIA GPU, or is too old for CUDA 13 (release 580); see docs/t4.md")


def loads(library: str) -> bool:
    """Whether the system's loader finds a library; if so it is loaded for all that follow."""
    try:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


class Network:
    """A library on this machine, ready to run."""

    def __init__(self, library: Path, info: Any) -> None:
        self._tvm = load_tvm()
        if info["gpu"] is None:
            place_threads()
        else:
            load_cuda(self._tvm)
        self._batch = info["batch"]
        self._device = self._tvm.cpu() if info["gpu"] is None else self._tvm.cuda(0)
        self.where = "this CPU" if info["gpu"] is None else self._device.device_name
        try:
            module = self._tvm.runtime.load_module(str(library))
            self._main = self._tvm.runtime.vm.VirtualMachine(module, self._device)["main"]
        except Exception as error:
            sys.exit(f"error: {library} cannot be loaded: {str(error).strip().splitlines()[-1]}")

    def run(self, x: np.ndarray[Any, Any], runs: int) -> tuple[np.ndarray[Any, Any], float]:
        """The output's integers [N, classes] and the median milliseconds of a call.

        Args:
            x: integers [N, 3, H, W], N at most the library's batch.
            runs: timed calls, after one that records the CUDA graph.
        """
        resident = self._tvm.runtime.tensor(filled(x, self._batch), self._device)
        integers = self._main(resident).numpy()[: len(x)]

        def call() -> None:
            self._main(resident)
            self._device.sync()

        return integers, median_milliseconds(call, runs)


class RemoteNetwork:
    """A library on another machine, which runs TVM's RPC server; nothing but TVM is needed there."""

    def __init__(self, library: Path, info: Any, address: str) -> None:
        from tvm import rpc

        self._tvm = load_tvm()
        self._batch, self.where = info["batch"], address
        host, _, rest = address.partition(":")
        port, _, key = rest.partition("/")
        if not port.isdecimal():
            sys.exit(f"error: --rpc takes HOST:PORT or HOST:PORT/KEY, got '{address}'")
        try:
            if key:
                tracker = rpc.connect_tracker(host, int(port))
                if f"server:{key}" not in {server["key"] for server in tracker.summary()["server_info"]}:
                    sys.exit(f"error: the tracker at {host}:{port} has no server of the key '{key}'")
                remote = tracker.request(key, session_timeout=SESSION_SECONDS)
            else:
                remote = rpc.connect(host, int(port), session_timeout=SESSION_SECONDS)
            remote.upload(str(library))
            self._device = remote.cpu() if info["gpu"] is None else remote.cuda(0)
            self._machine = self._tvm.runtime.vm.VirtualMachine(remote.load_module(library.name), self._device)
        except Exception as error:
            sys.exit(f"error: {address} does not take the library: {str(error).strip().splitlines()[-1]}")

    def run(self, x: np.ndarray[Any, Any], runs: int) -> tuple[np.ndarray[Any, Any], float]:
        """As `Network.run`; the time has a message each way over the network in it."""
        try:
            self._machine.set_input("main", self._tvm.runtime.tensor(filled(x, self._batch), self._device))

            def call() -> None:
                self._machine.invoke_stateful("main")
                self._device.sync()

            call()
            integers = self._machine.get_outputs("main").numpy()[: len(x)]
            return integers, median_milliseconds(call, runs)
        except Exception as error:
            sys.exit(f"error: {self.where} failed in the middle: {str(error).strip().splitlines()[-1]}")


def filled(x: np.ndarray[Any, Any], batch: int) -> np.ndarray[Any, Any]:
    """Filled up with zeros to the batch that the library was compiled for."""
    return np.concatenate([x, np.zeros((batch - len(x), *x.shape[1:]), x.dtype)])


def median_milliseconds(call: Callable[[], None], runs: int) -> float:
    """Of calls that end when the device has done all."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


if __name__ == "__main__":
    main()
