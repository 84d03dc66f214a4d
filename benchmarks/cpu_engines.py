"""The engines that `benchmarks.cpu_peers` times: how each is loaded, from an fp32 image to logits.

    python -m benchmarks.cpu_engines NAME FOLDER BATCH THREADS      (a worker; cpu_peers starts it)

Whatever an engine does to a float image before its first layer, and to what its last layer makes, is in its time.
``library alone`` is ours without both, from integers that lie in its memory. Each engine answers the image once before
it is timed, and its logits must be those of the fp32 network, as far as 8 bits allow (`LEAST_CORRELATION`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bursts import Channel
from benchmarks.cpu_prepare import Network

LEAST_CORRELATION = 0.9
"""Between an engine's logits and those of the fp32 network; INT8 of random weights stays above 0.97."""

_WARMUP = 4

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """What a worker loads: a prepared network at a batch, on some threads."""

    folder: Path
    network: Network
    batch: int
    threads: int

    @property
    def images(self) -> NDArray[np.float32]:
        return self.network.images(self.batch)

    def file(self, name: str) -> str:
        """A prepared file of this batch."""
        stem, dot, ending = name.partition(".")
        return str(self.folder / f"{stem}_b{self.batch}{dot}{ending}")


@dataclass(frozen=True)
class Engine:
    """One row of the table.

    Attributes:
        name: for tables.
        load: makes a call that returns logits, or None where there are none to look at, and says what it took.
        packages: without which it is left out.
        steps: of `benchmarks.cpu_prepare`, in order, beside those that every case needs.
        weight_bytes: of a weight in memory.
        environment: variables of its process.
        needs: instruction sets, without any of which this row would repeat another one; none where it never does.
    """

    name: str
    load: Callable[[Case], tuple[Call, Mapping[str, Any]]]
    packages: tuple[str, ...]
    steps: tuple[str, ...]
    weight_bytes: int
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def _hawq_tvm(case: Case, *, alone: bool) -> tuple[Call, Mapping[str, Any]]:
    from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
    from hawq_tvm.core.interpreter import quantize_input

    configure_threads(case.threads)
    module, images = CompiledModule(Path(case.file("hawq_tvm.so"))), case.images
    about = {"cpu": module.info.cpu, "kernels": sorted(set(module.info.call_kernels.values()))}
    if alone:
        return module.prepare(quantize_input(images, module.input_type)), about
    return lambda: module.logits(images), about


def _onnxruntime(case: Case, *, file: str) -> tuple[Call, Mapping[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    session = onnxruntime.InferenceSession(case.file(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: case.images}
    return lambda: session.run(None, feed)[0], {}


def _openvino(case: Case, *, file: str, hint: str = "") -> tuple[Call, Mapping[str, Any]]:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": case.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if hint:
        settings["INFERENCE_PRECISION_HINT"] = hint
    compiled = openvino.Core().compile_model(case.file(file), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(case.images, shared_memory=False))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return call, {"precision": str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())}


def _pytorch(case: Case, *, compiled: bool) -> tuple[Call, Mapping[str, Any]]:
    import torch

    torch.set_num_threads(case.threads)
    torch.set_grad_enabled(False)
    module = case.network.module().to(memory_format=torch.channels_last)
    x = torch.from_numpy(case.images).contiguous(memory_format=torch.channels_last)
    if compiled:
        module = _compiled(module)
    return lambda: module(x).numpy(), {}


def _torchao(case: Case) -> tuple[Call, Mapping[str, Any]]:
    """Quantised on the exported graph (PT2E) for x86, then Inductor with oneDNN's INT8 convolutions."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.set_num_threads(case.threads)
    torch.set_grad_enabled(False)
    x = torch.from_numpy(case.images).contiguous(memory_format=torch.channels_last)
    module = case.network.module().to(memory_format=torch.channels_last)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(module, (x,), strict=True)  # else it does not find its convolutions
    observed = prepare_pt2e(exported.module(), quantizer)
    observed(x)
    converted = _compiled(convert_pt2e(observed))
    return lambda: converted(x).numpy(), {}


def _compiled(module: Any) -> Any:
    """By Inductor, weights folded into the graph."""
    import torch
    from torch._inductor import config

    config.freezing = True
    return torch.compile(module)


_ONNX = ("onnx_fp32",)
_INT8 = "openvino_int8.xml"

ENGINES: tuple[Engine, ...] = (
    Engine("hawq_tvm", partial(_hawq_tvm, alone=False), (), (), 1),
    Engine("hawq_tvm, library alone", partial(_hawq_tvm, alone=True), (), (), 1),
    Engine("OpenVINO INT8", partial(_openvino, file=_INT8), ("openvino", "nncf"), (*_ONNX, "openvino_int8"), 1),
    Engine(
        "OpenVINO INT8 without AMX",
        partial(_openvino, file=_INT8),
        ("openvino", "nncf"),
        (*_ONNX, "openvino_int8"),
        1,
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
        needs=("amx_int8",),
    ),
    Engine(
        "ONNX Runtime INT8",
        partial(_onnxruntime, file="onnxruntime_int8.onnx"),
        ("onnxruntime",),
        (*_ONNX, "onnxruntime_int8"),
        1,
    ),
    Engine("torchao INT8", _torchao, ("torchao",), (), 1),
    Engine("OpenVINO fp32", partial(_openvino, file="fp32.onnx", hint="f32"), ("openvino",), _ONNX, 4),
    Engine(
        "OpenVINO fp32, by default",
        partial(_openvino, file="fp32.onnx"),
        ("openvino",),
        _ONNX,
        2,
        needs=("amx_bf16", "avx512_bf16"),
    ),
    Engine("ONNX Runtime fp32", partial(_onnxruntime, file="fp32.onnx"), ("onnxruntime",), _ONNX, 4),
    Engine("PyTorch fp32", partial(_pytorch, compiled=False), ("torch",), (), 4),
    Engine("PyTorch fp32, Inductor", partial(_pytorch, compiled=True), ("torch",), (), 4),
)
"""All engines, in the order of their turns; the first is what the others are compared with."""


def thread_environment(threads: int) -> dict[str, str]:
    """What must be said before a library is loaded."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS"), str(threads))


def correlation(logits: Any, expected: NDArray[np.float32]) -> float:
    """Pearson's, over all logits of a batch, each image's mean taken off.

    Raises:
        SystemExit: another shape, or below `LEAST_CORRELATION`: the engine computes something else.
    """
    found = np.asarray(logits, np.float64)
    if found.shape != expected.shape:
        raise SystemExit(f"its logits have the shape {found.shape}, expected {expected.shape}")
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (found, expected.astype(np.float64)))
    value = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    if not value >= LEAST_CORRELATION:
        raise SystemExit(f"its logits are not those of the fp32 network: correlation {value:.3f}")
    return value


def main() -> None:
    channel = Channel()
    name, folder, batch, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    os.environ.update(thread_environment(threads))
    case = Case(folder, Network.read(folder), batch, threads)
    engine = next(item for item in ENGINES if item.name == name)
    call, about = engine.load(case)
    for _ in range(_WARMUP - 1):
        call()
    logits = call()
    said = {} if logits is None else {"correlation": correlation(logits, np.load(case.file("reference.npy")))}
    channel.serve(call, {**about, **said})


if __name__ == "__main__":
    main()
