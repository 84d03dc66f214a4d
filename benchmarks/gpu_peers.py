"""What our libraries are timed beside: PyTorch in fp32 and fp16, and the vendor's INT8 product of matrices.

PyTorch runs channels-last, its convolutions chosen by cuDNN's own search, the whole network captured in a CUDA graph:
the fastest that it does without a compiler. The vendor's INT8 product is cuBLASLt's, by `torch._int_mm`, of the
matrices that a convolution is once its input has been gathered: less work than the convolution.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

REPEATS = 20
LAUNCHES = 9


@dataclass(frozen=True)
class Peers:
    """Other ways to run one network at one batch.

    Attributes:
        networks: a call that is waited for, by name.
        layers: microseconds by name and layer, measured when it is called.
    """

    networks: Mapping[str, Callable[[], object]]
    layers: Callable[[], dict[str, dict[str, float]]]


MakePeers = Callable[[Path, Mapping[str, tuple[int, int, int]], int], Peers]


def find_peers(*, emulated: bool) -> tuple[MakePeers | None, str | None]:
    """What makes the peers of a network, or None and the reason why they are left out."""
    if emulated:
        return None, "PyTorch and the vendor's INT8, which an emulated GPU does not run"
    try:
        import torch
    except ImportError as error:
        return None, f"PyTorch and the vendor's INT8: PyTorch is not here ({error})"
    if not torch.cuda.is_available():
        return None, f"PyTorch and the vendor's INT8: PyTorch {torch.__version__} sees no CUDA"
    try:
        from hawq_tvm.runs.float_io import load_float_graph  # noqa: F401
    except ImportError as error:
        return (
            None,
            f"PyTorch and the vendor's INT8: the float network cannot be read ({error}); pip install safetensors",
        )
    return make_peers, None


def versions() -> dict[str, str]:
    """PyTorch's, where it is at hand."""
    try:
        import torch
    except ImportError:
        return {}
    cudnn: Any = torch.backends.cudnn
    return {"torch": str(torch.__version__), "cuda": str(torch.version.cuda), "cudnn": str(cudnn.version())}


def make_peers(path: Path, products: Mapping[str, tuple[int, int, int]], batch: int) -> Peers:
    """The peers of a network.

    Args:
        path: of its float graph.
        products: of each dense layer of one sample: rows, columns, and what is summed over.
        batch: samples a call.
    """
    import torch

    from hawq_tvm.backends.pytorch.float_module import FloatModule
    from hawq_tvm.runs.float_io import load_float_graph

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    graph = load_float_graph(path)
    nets: dict[str, tuple[Any, Any]] = {}
    for name, dtype in (("PyTorch fp32", torch.float32), ("PyTorch fp16", torch.float16)):
        module: Any = FloatModule(graph).to("cuda", dtype)
        x = torch.randn(batch, *graph.input_shape, device="cuda", dtype=dtype)
        if x.dim() == 4:
            module, x = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        nets[name] = module, x

    def layers() -> dict[str, dict[str, float]]:
        vendor = {name: _product_time(*shape, batch) for name, shape in products.items()}
        return {**{name: _layer_times(*net) for name, net in nets.items()}, "cuBLASLt INT8": vendor}

    return Peers({name: _waited_for(_captured(partial(net[0], net[1]))) for name, net in nets.items()}, layers)


def _captured(call: Callable[[], Any], repeats: int = 1) -> Any:
    """A CUDA graph of so many calls, after as many as let libraries choose their kernels."""
    import torch

    cuda: Any = torch.cuda
    side = cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph


def _waited_for(graph: Any) -> Callable[[], object]:
    import torch

    def call() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return call


def _seconds(call: Callable[[], Any]) -> float:
    """Of one call, in a graph of `REPEATS`: as our kernels are timed."""
    replay = _waited_for(_captured(call, REPEATS))
    times = []
    for _ in range(LAUNCHES + 1):
        started = time.perf_counter()
        replay()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:])) / REPEATS


def _layer_times(module: Any, x: Any) -> dict[str, float]:
    """Microseconds of every layer with weights by itself, on the inputs that it has in the network."""
    import torch

    from hawq_tvm.backends.pytorch.float_module import run_nodes

    weighted = {layer.name for layer in module.graph.layers}
    times: dict[str, float] = {}

    def result(node: Any, inputs: Any) -> Any:
        if node.name in weighted:
            times[node.name] = 1e6 * _seconds(lambda: module.result(node, inputs))
        return module.result(node, inputs)

    with torch.no_grad():
        run_nodes(module.graph, x, result, None)
    return times


def _product_time(rows: int, columns: int, summed: int, batch: int) -> float:
    """Microseconds of the vendor's product of INT8 matrices, its sizes filled up to what it takes."""
    import torch

    def filled(size: int, multiple: int) -> int:
        return -(-size // multiple) * multiple

    m, n, k = max(filled(rows * batch, 8), 24), filled(columns, 8), filled(summed, 8)  # _int_mm takes no fewer rows
    a = torch.randint(-128, 128, (m, k), device="cuda", dtype=torch.int8)
    b = torch.randint(-128, 128, (n, k), device="cuda", dtype=torch.int8).t()
    return 1e6 * _seconds(lambda: torch._int_mm(a, b))
