"""How much memory each metric takes at most over some samples: ``python -m tests.profile_peak SAMPLES``, as JSON.

In a process of its own, whose memory nothing else has used.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.frontend.capture import capture
from hawq_tvm.measure.curvature import Curved, profile_eigenvalue, profile_omega
from hawq_tvm.measure.information import profile_fisher
from hawq_tvm.measure.losses import profile_measured
from hawq_tvm.posttraining.alone import round_alone
from hawq_tvm.settings import HessianSettings, RoundingSettings
from hawq_tvm.sources.samples import Batch

LAYERS, CHANNELS, SIDE, PIECE = 8, 32, 64, 4


def network() -> nn.Module:
    """Layers of few weights and large values, so that what is held of each sample outweighs all else."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(LAYERS):
        layers += [nn.Conv2d(CHANNELS if index else 3, CHANNELS, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 4)).eval()


def memory(name: str) -> int:
    """Bytes of this process: ``VmRSS``, now, or ``VmHWM``, at most since `forget`."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def forget() -> None:
    """Count the most from here on (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peaks(samples: int) -> dict[str, int]:
    """Bytes that each metric takes at most, above what the process had before any."""
    graph = capture(network(), torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    images = torch.randn(samples, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    batches = [Batch(piece, torch.arange(len(piece)) % 4) for piece in images.split(PIECE)]
    settings = HessianSettings(target_error=0.0, max_probes=2 * len(batches), max_iterations=1, batch=PIECE)
    module = FloatModule(graph)
    nearest = RoundingSettings(method="nearest", scale_search=False)
    weights: dict[str, dict[WeightFormat, LayerWeights]] = round_alone(
        graph, [images[:PIECE]], [WeightFormat(4)], nearest
    )
    metrics: dict[str, Callable[[], object]] = {
        "kl": lambda: profile_measured("kl", graph, batches, weights, {}),
        "sqnr": lambda: profile_measured("sqnr", graph, batches, weights, {}),
        "fisher-form": lambda: profile_fisher("fisher-form", module, batches, weights, {}),
        "omega": lambda: profile_omega(Curved.over(module, batches), weights, {}, settings),
        "eigenvalue": lambda: profile_eigenvalue(Curved.over(module, batches), weights, {}, settings),
    }
    before, found = memory("VmRSS"), {}
    for name, make in metrics.items():
        forget()
        make()
        found[name] = memory("VmHWM") - before
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(peaks(int(sys.argv[1]))))
