"""What the engines of `benchmarks.cpu_peers` load, all made of one fp32 PyTorch network.

    python -m benchmarks.cpu_prepare STEP FOLDER BATCH      (cpu_peers calls it, each step in a process of its own)

Every engine gets the same weights and is calibrated on the same few random samples: what a network answers is of no
concern here, only that all compute the same one, which `benchmarks.cpu_engines` checks. Random weights get batch norms
that fit them: with those of the factories a deep network's activations die out, and nothing is left to check.
hawq_tvm's library is compiled anew whenever it is asked for, and every value of every layer is compared with ONNX
Runtime before it may be timed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CALIBRATION_SAMPLES = 4
_NORM_SAMPLES = 8  # that batch norms of random weights take their statistics from
RANDOM_FILE = "random.safetensors"
_PACKAGES = ("hawq_tvm", "torch", "onnxruntime", "openvino", "nncf", "torchao", "torchvision", "numpy", "apache-tvm")


@dataclass(frozen=True)
class Network:
    """A network to time.

    Attributes:
        spec: as `hawq-tvm run` takes it.
        weights: path of a checkpoint, which `random_weights` makes where it does not exist.
        shape: of one sample.
    """

    spec: str
    weights: str
    shape: tuple[int, ...]

    def images(self, count: int, seed: int = 0) -> NDArray[np.float32]:
        """Random samples [count, ...], the same for every engine."""
        return np.random.default_rng(seed).standard_normal((count, *self.shape), dtype=np.float32)

    def module(self) -> Any:
        """The PyTorch network, in evaluation mode."""
        from hawq_tvm.sources.models import load_model

        return load_model(self.spec, self.weights).module

    def write(self, folder: Path) -> None:
        (folder / "network.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Network:
        """As `write` left it; no stranger writes there."""
        found = json.loads((folder / "network.json").read_text())
        return cls(found["spec"], found["weights"], tuple(found["shape"]))


def installed_versions() -> dict[str, str]:
    """Of the packages that take part, those that are here."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


# The steps


def random_weights(folder: Path, network: Network, batch: int) -> None:
    """The checkpoint of a network that has none: as its factory makes it, every batch norm with what it then sees."""
    import torch
    from safetensors.torch import save_file

    from hawq_tvm.sources.models import load_model

    module = load_model(network.spec, "random").module
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # the mean of what it sees, not a moving one
            part.train()
    with torch.no_grad():
        module(torch.from_numpy(network.images(_NORM_SAMPLES, seed=2)))
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, network.weights)


def reference(folder: Path, network: Network, batch: int) -> None:
    """The fp32 logits of every image in `reference_b*.npy`."""
    import torch

    with torch.inference_mode():
        logits = network.module()(torch.from_numpy(network.images(batch)))
    np.save(folder / f"reference_b{batch}.npy", logits.numpy())


def quantised(folder: Path, network: Network, batch: int) -> None:
    """hawq_tvm's run: INT8 throughout."""
    import hawq_tvm

    rounding = hawq_tvm.RoundingSettings(method="nearest", scale_search=False, slope=False, bias=False)
    hessian = hawq_tvm.HessianSettings(samples=1)
    images = network.images(2 * _CALIBRATION_SAMPLES, seed=1)
    made = hawq_tvm.quantize(
        network.module(), images, bits="w8a8", observer="max", rounding=rounding, hessian=hessian, progress=True
    )
    made.save(folder / "run")


def library(folder: Path, network: Network, batch: int) -> None:
    """hawq_tvm's library for this machine, `hawq_tvm_b*.so`, equal to ONNX Runtime in every value of every layer.

    Raises:
        SystemExit: it is not; the first layer that differs is named.
    """
    from hawq_tvm.backends.onnx.io import from_onnx, load_model
    from hawq_tvm.backends.onnx.runner import OnnxRuntimeModule
    from hawq_tvm.backends.tvm.build import build_library
    from hawq_tvm.backends.tvm.lower import lower
    from hawq_tvm.backends.tvm.runtime import CompiledModule
    from hawq_tvm.core.interpreter import quantize_input
    from hawq_tvm.core.targets import find_target
    from hawq_tvm.measure.verify import verify
    from hawq_tvm.runs.layers import describe_layers

    model = load_model(folder / "run" / "model.onnx")
    graph = from_onnx(model)
    path = folder / f"hawq_tvm_b{batch}.so"
    build_library(lower(graph, find_target("llvm"), batch=batch), path)
    executors = {"onnxruntime": OnnxRuntimeModule(model, threads=1).run, "tvm": CompiledModule(path).values}
    report = verify(graph, executors, [quantize_input(network.images(batch), graph.input_type)])
    if not report.ok:
        raise SystemExit(f"the compiled library is not exact: {report.mismatches[0]}")
    layers = describe_layers(graph)["layers"]
    macs, weights = (sum(layer[what] for layer in layers) for what in ("macs", "parameters"))
    facts = {"macs": macs, "weights": weights, "verified": str(report)}
    (folder / f"facts_b{batch}.json").write_text(json.dumps(facts))


def onnx_fp32(folder: Path, network: Network, batch: int) -> None:
    """PyTorch's own export, `fp32_b*.onnx`."""
    import torch

    example = torch.from_numpy(network.images(batch))
    path = folder / f"fp32_b{batch}.onnx"
    torch.onnx.export(
        network.module(), (example,), path, input_names=["x"], output_names=["y"], opset_version=17, dynamo=False
    )


def onnxruntime_int8(folder: Path, network: Network, batch: int) -> None:
    """ONNX Runtime's static quantisation, unsigned activations and signed weights per channel: its fastest form."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter([network.images(batch, seed) for seed in range(1, 1 + _CALIBRATION_SAMPLES)])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(({"x": images} for images in self._left), None)

    source, prepared = folder / f"fp32_b{batch}.onnx", folder / f"prepared_b{batch}.onnx"
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(folder / f"onnxruntime_int8_b{batch}.onnx"),
        Samples(),
        quant_format=QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def openvino_int8(folder: Path, network: Network, batch: int) -> None:
    """NNCF's post-training quantisation with its preset for speed."""
    import nncf
    import openvino

    model = openvino.Core().read_model(folder / f"fp32_b{batch}.onnx")
    samples = nncf.Dataset([network.images(batch, seed) for seed in range(1, 1 + _CALIBRATION_SAMPLES)])
    made = nncf.quantize(model, samples, subset_size=_CALIBRATION_SAMPLES, preset=nncf.QuantizationPreset.PERFORMANCE)
    openvino.save_model(made, folder / f"openvino_int8_b{batch}.xml", compress_to_fp16=False)


WEIGHTS = "random_weights"
"""The step that comes before all others, where a network has no checkpoint."""

NEEDED = ("reference", "quantised", "library")
"""The steps without which there is nothing to compare."""

STEPS: dict[str, tuple[Callable[[Path, Network, int], None], str]] = {
    WEIGHTS: (random_weights, RANDOM_FILE),
    "reference": (reference, "reference_b{batch}.npy"),
    "quantised": (quantised, "run/model.onnx"),
    "library": (library, ""),  # made anew every time: the kernels may have changed
    "onnx_fp32": (onnx_fp32, "fp32_b{batch}.onnx"),
    "onnxruntime_int8": (onnxruntime_int8, "onnxruntime_int8_b{batch}.onnx"),
    "openvino_int8": (openvino_int8, "openvino_int8_b{batch}.xml"),
}
"""Each step's function, and the file that says it was done."""


def main() -> None:
    step, folder, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    STEPS[step][0](folder, Network.read(folder), batch)


if __name__ == "__main__":
    main()
