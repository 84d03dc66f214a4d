"""Layers that a rounding had found before it was cut off, so that the next one goes on from there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hawq_tvm.calibration.rounding import Levels
from hawq_tvm.core.codebook import WeightFormat, check_codebook
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.hashing import json_sha256
from hawq_tvm.posttraining.layer import Found
from hawq_tvm.runs.manifest import versions
from hawq_tvm.runs.rundir import Run

_FOLDER = "rounding"
_PARTS = ("integers", "scales", "slope", "offset")
_CODEBOOK = "codebook"


class Checkpoint:
    """A file a layer, in a folder of the run's working copy.

    A file counts only for the same question: the same float graph, ranges, bits, settings and samples, asked of the
    same versions of the program and what it computes with.
    """

    def __init__(self, run: Run, question: Mapping[str, Any]) -> None:
        """Open it.

        Args:
            run: in the making.
            question: JSON values that decide the result.
        """
        self._run = run
        self._key = json_sha256({"question": dict(question), "versions": dict(versions())})

    @property
    def _folder(self) -> Path:
        return self._run.path / _FOLDER

    def found(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Found]:
        """The layers that are there; what cannot be read, answers another question, or fits no layer, is not.

        Args:
            shapes: of the layers' weights, by name.
        """
        layers = {}
        for path in sorted(self._folder.glob("*")):
            try:
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    if metadata.get("key") != self._key:
                        continue
                    codebook = file.get_tensor(_CODEBOOK).numpy() if _CODEBOOK in file.keys() else None  # noqa: SIM118
                    levels = Levels(WeightFormat(int(metadata["bits"]), codebook is not None), codebook)
                    found = Found(**{part: file.get_tensor(part) for part in _PARTS}, levels=levels)
                    if _fits(found, shapes[metadata["layer"]]):
                        layers[metadata["layer"]] = found
            except (SafetensorError, OSError, KeyError, ValueError, AllocationError):
                continue
        return layers

    def keep(self, layer: str, found: Found) -> None:
        """Write one layer."""
        name = f"{_FOLDER}/{hashlib.sha256(layer.encode()).hexdigest()[:16]}"
        tensors = {part: getattr(found, part).contiguous() for part in _PARTS}
        if found.levels.codebook is not None:
            tensors[_CODEBOOK] = torch.from_numpy(found.levels.codebook)
        metadata = {"key": self._key, "layer": layer, "bits": str(found.levels.format.bits)}
        self._run.write(name, lambda path: save_file(tensors, path, metadata=metadata))

    def clear(self) -> None:
        """Remove it: the result stands elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _fits(found: Found, shape: tuple[int, ...]) -> bool:
    """Whether the tensors are those of a layer whose weights have that shape."""
    rows = (found.scales, found.slope, found.offset)
    if found.levels.codebook is not None:
        check_codebook(found.levels.codebook)
    return (found.integers.dtype, *found.integers.shape) == (torch.int8, *shape) and all(
        (row.dtype, *row.shape) == (torch.float64, shape[0]) for row in rows
    )
