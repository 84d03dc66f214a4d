"""Grouped convolutions of known networks on a T4: what the cost model says of Tensor Cores and of the simple kernel.

    python -m benchmarks.gpu_groups

Beside them stands what a kernel of ``dp4a`` would take that did four products where the simple one does one; there is
no such kernel. No device is asked. Prints a table and writes ``benchmarks/results/gpu_groups.json``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu_model import T4_TARGET
from benchmarks.runs import markdown, write_results
from hawq_tvm.core.ir import IntType, Node, Rescale, TensorType, Window
from hawq_tvm.core.ops import Conv2d
from hawq_tvm.kernels import KERNELS, Offer, Request
from hawq_tvm.kernels.cuda.costs import simple_cost
from hawq_tvm.kernels.cuda.storages import channels_last

SIMPLE = "conv2d_x8w8s32_cuda_nhwc"


@dataclass(frozen=True)
class Layer:
    """A convolution that keeps the size of its input.

    Attributes:
        channels: of input and result.
        size: rows and columns.
        groups: how many.
        kernel: rows and columns of its window.
    """

    channels: int
    size: int
    groups: int
    kernel: int = 3

    def request(self, bits: int, batch: int) -> Request:
        """All values and weights of so many bits, channels last."""
        window = Window((self.kernel,) * 2, pads=(self.kernel // 2,) * 4)
        type = TensorType(IntType(bits, signed=False), (self.channels, self.size, self.size), 1.0)
        weight = np.ones((self.channels, self.channels // self.groups, self.kernel, self.kernel))
        rescale = Rescale(np.full(self.channels, 2**23 + 1), 40, 0, type.dtype.hi)
        op = Conv2d(weight, bits, np.zeros(self.channels), rescale, window, self.groups)
        storage = channels_last(type)
        assert storage is not None
        return Request(Node("y", op, ("x",), type), (type,), batch, T4_TARGET, 128, {"x": storage, "y": storage})


LAYERS = {
    "ResNeXt-50 32x4d, stage 1": Layer(128, 56, 32),
    "ResNeXt-50 32x4d, stage 2": Layer(256, 28, 32),
    "ResNeXt-50 32x4d, stage 3": Layer(512, 14, 32),
    "ResNeXt-50 32x4d, stage 4": Layer(1024, 7, 32),
    "RegNetX-400MF, stage 3": Layer(160, 14, 10),
    "ShuffleNet 3 groups, stage 2, 1x1": Layer(240, 28, 3, 1),
    "ShuffleNet 8 groups, stage 2, 1x1": Layer(384, 28, 8, 1),
}


def microseconds(layer: Layer, bits: int, batch: int) -> dict[str, float]:
    """What each way takes, at the clock that kernels are compared at."""
    request = layer.request(bits, batch)
    answers = {kernel.name: kernel.offer(request) for kernel in KERNELS}
    offers = {name: offer for name, offer in answers.items() if isinstance(offer, Offer)}
    simple = offers[SIMPLE]
    products = layer.channels // layer.groups * layer.kernel**2
    by_fours = simple_cost(request, simple.reads, simple.writes, -(-products // 4), layer.channels * products)
    tensor_cores = min(offer.cost for name, offer in offers.items() if "_mma_" in name)
    return {"simple": simple.cost, "dp4a": by_fours.us(), "tensor cores": tensor_cores}


def main() -> None:
    results: dict[str, Any] = {}
    rows = []
    for (name, layer), batch in itertools.product(LAYERS.items(), (1, 8)):
        cells = []
        for bits in (8, 4):
            found = results[f"{name}, INT{bits}, batch {batch}"] = microseconds(layer, bits, batch)
            cells += [*(f"{us:.1f}" for us in found.values()), f"{found['simple'] / found['tensor cores']:.1f}x"]
        rows.append([name, f"{batch}", *cells])
    ways = ["simple", "dp4a", "tensor cores", "faster than simple"]
    heads = [f"INT{bits} {way}" for bits in (8, 4) for way in ways]
    print(markdown(["layer", "batch", *heads], rows))
    print(f"\nwrote {write_results('gpu_groups', results)}")


if __name__ == "__main__":
    main()
