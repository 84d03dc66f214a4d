"""NVIDIA's INT4 ResNet-50 (MLPerf Inference v0.7, open division), and how it is given to hawq_tvm.

Every activation has 4 unsigned bits, the last sum 7, the projections of the shortcuts 8 signed ones; its ranges are the
clips that it was trained with (``docs/ranges.md``).
"""

from __future__ import annotations

from pathlib import Path

import hawq_tvm
from hawq_tvm.sources.samples import Data

NVIDIAS_RESIDUAL_BITS = 4
NVIDIAS_STORED_BITS = {"layer4.2.conv3": 7, "*.downsample.*": 8}


def checkpoint(data: Path) -> Path:
    """Its weights in a folder of data."""
    return data / "resnet50_imagenet.safetensors"


def ranges(data: Path) -> Path:
    """Its ranges in a folder of data."""
    return data / "resnet50_imagenet_ranges.json"


def quantized(samples: Data, data: Path) -> hawq_tvm.QuantizedNetwork:
    """The network in integers.

    Args:
        samples: to calibrate what has no range of its own, and to measure accuracy on.
        data: the folder that holds its checkpoint and its ranges.
    """
    return hawq_tvm.quantize(
        "resnet50",
        samples,
        weights=str(checkpoint(data)),
        bits="w4a4",
        ranges=ranges(data),
        clip_to_ranges=True,
        residual_bits=NVIDIAS_RESIDUAL_BITS,
        stored_bits=NVIDIAS_STORED_BITS,
        rounding=hawq_tvm.RoundingSettings(slope=False, bias=False),  # it was trained with what rounding does to it
        progress=True,
    )
