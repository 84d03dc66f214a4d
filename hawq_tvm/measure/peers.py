"""The contenders of a benchmark: the compiled library, fp32 PyTorch and ONNX Runtime, all on the same input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from onnx import ModelProto

from hawq_tvm.backends.onnx.float_onnx import to_float_onnx
from hawq_tvm.backends.onnx.runner import make_session
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.tvm.host import cpu_name, default_threads
from hawq_tvm.backends.tvm.runtime import CompiledModule, configure_threads
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.interpreter import quantize_input
from hawq_tvm.measure.bench import BenchReport, interleave, median_layers

_WARMUP = 3


def benchmark_library(
    library: CompiledModule,
    float_graph: FloatGraph,
    model: ModelProto,
    *,
    threads: int,
    seconds: float,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> BenchReport:
    """Time a library beside its peers, from resident input to output; quantising the input is not counted.

    Args:
        library: compiled for this machine.
        float_graph: the fp32 network that it came from.
        model: the integer ONNX model that it was compiled from.
        threads: of every contender.
        seconds: about how long the run takes.
        seed: of the input.
        progress: called with rounds done and rounds in all.
    """
    before = torch.get_num_threads()
    configure_threads(threads)
    torch.set_num_threads(threads)
    shape = (library.info.batch, *float_graph.input_shape)
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    integers = quantize_input(x, library.input_type)
    network, image = FloatModule(float_graph), torch.from_numpy(x)
    if image.ndim == 4:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image = image.contiguous(memory_format=torch.channels_last)
    float_session = make_session(to_float_onnx(float_graph), threads=threads)
    integer_session = make_session(model, threads=threads)

    def pytorch() -> None:
        with torch.inference_mode():
            network(image)

    contenders: dict[str, Callable[[], object]] = {
        "hawq_tvm": library.prepare(integers),
        "ONNX Runtime fp32": lambda: float_session.run(None, {float_graph.input_name: x}),
        "PyTorch fp32": pytorch,
        "ONNX Runtime on model.onnx": lambda: integer_session.run(None, {library.info.input_name: integers}),
    }
    try:
        latencies = interleave(contenders, seconds=seconds, warmup=_WARMUP, progress=progress)
        layers = median_layers(lambda: library.call_times(integers))
    finally:
        torch.set_num_threads(before)
        configure_threads(default_threads())
    info = library.info
    return BenchReport(cpu_name(), info.target, threads, info.batch, _WARMUP, latencies, layers, info.call_kernels)
