"""CUDA's two libraries, called by their functions as TVM's runtime calls them."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hawq_tvm.core.gpu import T4
from hawq_tvm.emulator import Image, Remote, emulated_session
from hawq_tvm.emulator.toolchain import CPP, find_compiler

from .emulated import cuda, needs_compiler

pytestmark = needs_compiler

TEXT = cuda(
    "int* x_ptr, int n",
    "extern __shared__ int big[]; __shared__ int small[4]; x_ptr[threadIdx.x] = n + (int)threadIdx.x;",
    threads=64,
)
PTX = b".version 8.0\n.target sm_75\n// a kernel\n"
HEADERS = Path("/usr/local/cuda/include"), Path("/usr/local/cuda-13.0/include")

OK, INVALID_VALUE, OUT_OF_MEMORY, INVALID_DEVICE, INVALID_IMAGE, NO_BINARY, NOT_FOUND = 0, 1, 2, 101, 200, 209, 500
ILLEGAL_ADDRESS, OUT_OF_RESOURCES, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_IMPLICIT = 700, 701, 900, 901, 906
TO_DEVICE, TO_HOST = 1, 2


def fatbin(*entries: tuple[int, int]) -> bytes:
    """A container of (kind, architecture) with empty code: 1 is PTX, 2 is machine code."""
    body = b"".join(
        struct.pack("<HHIQIIHHIQQQQ", kind, 0x0101, 64, 0, 0, 0, 0, 0, architecture, 0, 0x11, 0, 0)
        for kind, architecture in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


class Config(ctypes.Structure):
    _fields_ = (
        ("sizes", ctypes.c_uint * 7),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class Cuda:
    """Calls by ctypes, in the process that sees the emulated GPU; every method gives the error's number back."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._runtime = ctypes.CDLL("libcudart.so.13")
        self._runtime.cudaGetErrorString.restype = ctypes.c_char_p
        self._stream = ctypes.c_void_p()
        self._graph = ctypes.c_void_p()
        self._module = ctypes.c_void_p()
        self._function = ctypes.c_void_p()

    def text(self, error: int) -> str:
        return str(self._runtime.cudaGetErrorString(error).decode())

    def attribute(self, number: int) -> int:
        value = ctypes.c_int()
        assert self._runtime.cudaDeviceGetAttribute(ctypes.byref(value), number, 0) == OK
        return value.value

    def properties(self) -> bytes:
        memory = ctypes.create_string_buffer(1008)
        assert self._runtime.cudaGetDeviceProperties(memory, 0) == OK
        return memory.raw

    def set_device(self, device: int) -> int:
        return int(self._runtime.cudaSetDevice(device))

    def malloc(self, size: int) -> tuple[int, int]:
        pointer = ctypes.c_void_p()
        return self._runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)), pointer.value or 0

    def free(self, address: int) -> int:
        return int(self._runtime.cudaFree(ctypes.c_void_p(address)))

    def free_bytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert self._runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == OK
        return free.value

    def copy_in(self, address: int, data: bytes) -> int:
        return int(
            self._runtime.cudaMemcpyAsync(ctypes.c_void_p(address), data, ctypes.c_size_t(len(data)), TO_DEVICE, None)
        )

    def copy_out(self, address: int, size: int) -> tuple[int, bytes]:
        data = ctypes.create_string_buffer(size)
        error = self._runtime.cudaMemcpyAsync(
            data, ctypes.c_void_p(address), ctypes.c_size_t(size), TO_HOST, self._stream
        )
        return error, data.raw

    def load(self, image: bytes) -> int:
        return int(self._driver.cuModuleLoadData(ctypes.byref(self._module), image))

    def find(self, name: str) -> int:
        return int(self._driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode()))

    def allow_shared(self, size: int) -> int:
        return int(self._driver.cuFuncSetAttribute(self._function, 8, size))

    def launch(self, address: int, number: int, block: int = 4, shared: int = 0, grid_y: int = 1) -> int:
        config = Config((ctypes.c_uint * 7)(1, grid_y, 1, block, 1, 1, shared), self._stream.value)
        values = ctypes.c_void_p(address), ctypes.c_int(number)
        arguments = (ctypes.c_void_p * 2)(*(ctypes.addressof(value) for value in values))
        return int(self._driver.cuLaunchKernelEx(ctypes.byref(config), self._function, arguments, None))

    def stream(self) -> int:
        return int(self._runtime.cudaStreamCreate(ctypes.byref(self._stream)))

    def synchronize(self) -> int:
        return int(self._runtime.cudaStreamSynchronize(self._stream))

    def begin_capture(self) -> int:
        return int(self._runtime.cudaStreamBeginCapture(self._stream, 0))

    def end_capture(self) -> int:
        return int(self._runtime.cudaStreamEndCapture(self._stream, ctypes.byref(self._graph)))

    def launch_graph(self, times: int) -> int:
        executable = ctypes.c_void_p()
        error = self._runtime.cudaGraphInstantiate(ctypes.byref(executable), self._graph, ctypes.c_ulonglong(0))
        for _ in range(times):
            error = error or self._runtime.cudaGraphLaunch(executable, self._stream)
        return error or self._runtime.cudaGraphExecDestroy(executable) or self._runtime.cudaGraphDestroy(self._graph)

    def measure(self) -> float:
        begin, end, elapsed = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float(-1)
        for event in (begin, end):
            assert self._runtime.cudaEventCreate(ctypes.byref(event)) == OK
            assert self._runtime.cudaEventRecord(event, None) == OK
        assert self._runtime.cudaEventSynchronize(end) == OK
        assert self._runtime.cudaEventElapsedTime(ctypes.byref(elapsed), begin, end) == OK
        return elapsed.value


@pytest.fixture
def device() -> Iterator[Remote]:
    images = [Image(hashlib.sha256(image).hexdigest(), TEXT) for image in (PTX, fatbin((2, 75), (1, 75)))]
    with emulated_session(dataclasses.replace(T4, memory_bytes=100_000), images) as session:
        yield session.create(Cuda)


def numbers(device: Remote, address: int, count: int) -> list[int]:
    error, data = device.call("copy_out", address, 4 * count)
    assert error == OK
    return [int(value) for value in np.frombuffer(data, np.int32)]


def test_the_device_tells_its_facts(device: Remote) -> None:
    wanted = {1: 1024, 4: 64, 8: 49152, 10: 32, 13: 1_590_000, 16: 40, 38: 4 << 20, 75: 7, 76: 5, 97: 65536}
    assert {number: device.call("attribute", number) for number in wanted} == wanted
    properties = device.call("properties")
    assert properties[:256].rstrip(b"\0") == b"Tesla T4 (emulated)"
    assert struct.unpack_from("<QQ", properties, 288) == (100_000, 49152)
    assert struct.unpack_from("<ii", properties, 360) == (7, 5)
    assert device.call("set_device", 1) == INVALID_DEVICE


def test_memory_is_poisoned_and_bounded(device: Remote) -> None:
    error, address = device.call("malloc", 40)
    assert error == OK
    assert address % 256 == 0
    assert device.call("copy_out", address, 40) == (OK, b"\xa5" * 40)
    assert device.call("copy_in", address, b"x" * 40) == OK
    assert device.call("copy_in", address, b"x" * 41) == INVALID_VALUE
    assert "leaves its buffer" in device.call("text", INVALID_VALUE)
    assert device.call("copy_out", address + 8, 33)[0] == INVALID_VALUE
    assert device.call("copy_out", address + 8, 32) == (OK, b"x" * 32)


def test_memory_runs_out_and_comes_back(device: Remote) -> None:
    first, address = device.call("malloc", 60_000)
    assert first == OK
    assert device.call("free_bytes") == 40_000
    assert device.call("malloc", 60_000) == (OUT_OF_MEMORY, 0)
    assert "60000 bytes, of 40000 that are free" in device.call("text", OUT_OF_MEMORY)
    assert device.call("free", address + 4) == INVALID_VALUE
    assert device.call("free", address) == OK
    assert device.call("free", address) == INVALID_VALUE
    for _ in range(200):
        error, address = device.call("malloc", 60_000)
        assert error == OK
        assert device.call("free", address) == OK


@pytest.mark.parametrize("image", [PTX, fatbin((2, 75), (1, 75))], ids=["PTX", "fatbin"])
def test_a_kernel_is_loaded_and_launched(device: Remote, image: bytes) -> None:
    _, address = device.call("malloc", 16)
    assert device.call("load", image) == OK
    assert device.call("find", "kernel") == OK
    assert device.call("launch", address, 7) == OK
    assert numbers(device, address, 4) == [7, 8, 9, 10]
    assert device.call("measure") >= 0


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (b"\0" * 64, INVALID_IMAGE, "neither a fatbin nor a cubin nor PTX"),
        (PTX.replace(b"kernel", b"other"), INVALID_IMAGE, "no CUDA text of the image with SHA-256"),
        (PTX.replace(b"75", b"80"), NO_BINARY, "for compute_80, and the emulated Tesla T4"),
        (fatbin((2, 80), (2, 86)), NO_BINARY, "for sm_80, sm_86, and"),
        (fatbin((2, 70)), INVALID_IMAGE, "no CUDA text"),
        (fatbin((2, 80), (1, 70)), INVALID_IMAGE, "no CUDA text"),
    ],
)
def test_images_that_do_not_load(device: Remote, image: bytes, error: int, message: str) -> None:
    """Machine code runs on its major version from its minor version on, PTX on all that are not older."""
    assert device.call("load", image) == error
    assert message in device.call("text", error)


@pytest.mark.parametrize(
    "options", [["-fatbin", "-gencode=arch=compute_75,code=[sm_75,compute_75]"], ["-cubin", "-arch=sm_75"], ["-ptx"]]
)
def test_images_of_nvidias_compiler_tell_their_length(device: Remote, options: list[str], tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    (tmp_path / "kernel.cu").write_text('extern "C" __global__ void kernel(int* x) { x[0] = 1; }')
    command = [nvcc, *options, "-o", str(tmp_path / "image"), str(tmp_path / "kernel.cu")]
    subprocess.run(command, capture_output=True, check=True)
    image = (tmp_path / "image").read_bytes()
    assert device.call("load", image + b"\0what follows in memory") == INVALID_IMAGE
    assert hashlib.sha256(image).hexdigest() in device.call("text", INVALID_IMAGE)


def test_a_kernel_that_is_not_there(device: Remote) -> None:
    assert device.call("load", PTX) == OK
    assert device.call("find", "other") == NOT_FOUND


def test_launches_beyond_the_limits(device: Remote) -> None:
    _, address = device.call("malloc", 16)
    assert device.call("load", PTX) == OK
    assert device.call("find", "kernel") == OK
    assert device.call("launch", address, 0, 2048) == INVALID_VALUE
    assert device.call("launch", address, 0, 65) == OUT_OF_RESOURCES
    assert "its launch bounds say 64" in device.call("text", OUT_OF_RESOURCES)
    assert device.call("launch", address, 0, 4, 0, 65536) == INVALID_VALUE
    assert device.call("launch", address, 0, 4, 48 * 1024 - 16) == OK
    assert device.call("launch", address, 0, 4, 48 * 1024) == INVALID_VALUE, "16 bytes are static"
    assert device.call("allow_shared", 64 * 1024 - 16) == OK
    assert device.call("launch", address, 0, 4, 64 * 1024 - 16) == OK
    assert device.call("allow_shared", 64 * 1024) == INVALID_VALUE
    assert "wants 65552 bytes of shared memory, of 65536" in device.call("text", INVALID_VALUE)


def test_after_a_failed_kernel_nothing_works_but_cleaning_up(device: Remote) -> None:
    _, address = device.call("malloc", 12)
    assert device.call("load", PTX) == OK
    assert device.call("find", "kernel") == OK
    assert device.call("launch", address, 0) == ILLEGAL_ADDRESS
    assert "write of 4 bytes out of bounds at x_ptr[3]" in device.call("text", ILLEGAL_ADDRESS)
    assert device.call("launch", address, 0, 3) == ILLEGAL_ADDRESS
    assert device.call("synchronize") == ILLEGAL_ADDRESS
    assert device.call("malloc", 4)[0] == ILLEGAL_ADDRESS
    assert device.call("free", address) == OK


def test_a_graph_is_captured_and_launched(device: Remote) -> None:
    _, address = device.call("malloc", 16)
    assert device.call("load", PTX) == OK
    assert device.call("find", "kernel") == OK
    assert device.call("begin_capture") == CAPTURE_UNSUPPORTED, "the legacy stream cannot"
    assert device.call("stream") == OK
    assert device.call("begin_capture") == OK
    assert device.call("launch", address, 7) == OK
    assert device.call("copy_in", address, b"") == CAPTURE_IMPLICIT
    assert device.call("end_capture") == OK
    assert numbers(device, address, 4) != [7, 8, 9, 10], "capturing runs nothing"
    assert device.call("launch_graph", 2) == OK
    assert numbers(device, address, 4) == [7, 8, 9, 10]


def test_what_a_capture_does_not_allow(device: Remote) -> None:
    assert device.call("stream") == OK
    assert device.call("begin_capture") == OK
    assert device.call("begin_capture") == CAPTURE_UNSUPPORTED
    assert device.call("malloc", 4) == (CAPTURE_UNSUPPORTED, 0)
    assert device.call("synchronize") == CAPTURE_UNSUPPORTED
    assert device.call("end_capture") == CAPTURE_INVALIDATED
    assert device.call("end_capture") == INVALID_VALUE
    assert device.call("synchronize") == OK


def test_the_interface_is_that_of_nvidias_headers(tmp_path: Path) -> None:
    headers = next((folder for folder in HEADERS if (folder / "cuda.h").exists()), None)
    if headers is None:
        pytest.skip("no CUDA toolkit is installed")
    pairs = {
        "name": "name",
        "uuid": "uuid",
        "luid": "luid",
        "totalGlobalMem": "total_global_bytes",
        "sharedMemPerBlock": "shared_bytes_per_block",
        "regsPerBlock": "registers_per_block",
        "warpSize": "warp_size",
        "maxThreadsPerBlock": "threads_per_block",
        "maxThreadsDim": "block_dimensions",
        "maxGridSize": "grid_dimensions",
        "major": "major",
        "minor": "minor",
        "multiProcessorCount": "multiprocessors",
    }
    attributes = {
        "MaxThreadsPerBlock": "ThreadsPerBlock",
        "MaxBlockDimX": "BlockX",
        "MaxBlockDimZ": "BlockZ",
        "MaxGridDimX": "GridX",
        "MaxGridDimZ": "GridZ",
        "MaxSharedMemoryPerBlock": "SharedPerBlock",
        "WarpSize": "Warp",
        "L2CacheSize": "L2Bytes",
        "MaxRegistersPerBlock": "RegistersPerBlock",
        "ClockRate": "ClockRate",
        "MultiProcessorCount": "Multiprocessors",
        "ComputeCapabilityMajor": "Major",
        "ComputeCapabilityMinor": "Minor",
        "MaxSharedMemoryPerBlockOptin": "SharedPerBlockOptIn",
    }
    errors = {
        "InvalidValue": "InvalidValue",
        "MemoryAllocation": "OutOfMemory",
        "NoDevice": "NoDevice",
        "InsufficientDriver": "DriverTooOld",
        "InvalidKernelImage": "InvalidImage",
        "NoKernelImageForDevice": "NoBinaryForGpu",
        "IllegalAddress": "IllegalAddress",
        "MisalignedAddress": "MisalignedAddress",
        "LaunchFailure": "LaunchFailed",
        "LaunchOutOfResources": "OutOfResources",
        "SymbolNotFound": "NotFound",
        "NotSupported": "NotSupported",
        "StreamCaptureUnsupported": "CaptureUnsupported",
        "StreamCaptureInvalidated": "CaptureInvalidated",
        "StreamCaptureImplicit": "CaptureImplicit",
        "InvalidDevice": "InvalidDevice",
    }
    checks = [
        "sizeof(cudaDeviceProp) == emulator::kDevicePropertiesBytes",
        "sizeof(CUlaunchConfig) == sizeof(emulator::LaunchConfig)",
        "offsetof(CUlaunchConfig, hStream) == offsetof(emulator::LaunchConfig, stream)",
        "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == emulator::kDynamicSharedLimit",
        *(f"offsetof(cudaDeviceProp, {a}) == offsetof(emulator::DeviceProperties, {b})" for a, b in pairs.items()),
        *(f"int(cudaDevAttr{a}) == int(emulator::k{b})" for a, b in attributes.items()),
        *(f"int(cudaError{a}) == int(emulator::k{b})" for a, b in errors.items()),
    ]
    source = tmp_path / "interface.cpp"
    includes = ["<cuda.h>", "<cuda_runtime_api.h>", '"driver/abi.h"', '"gpu.h"']
    source.write_text(
        "".join(f"#include {name}\n" for name in includes) + "".join(f'static_assert({c}, "");\n' for c in checks)
    )
    command = [find_compiler(), "-std=c++17", "-fsyntax-only", f"-I{headers}", f"-I{CPP}", str(source)]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
