"""Samples side by side, and the two splits of a data set: what every source of data gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hawq_tvm.sources.splits import Split


@dataclass(frozen=True)
class Batch:
    """Samples side by side.

    Attributes:
        images: float32 [N, ...].
        labels: int64 [N], or None.
    """

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class Data:
    """Two splits and how they were made.

    Attributes:
        name: as the user wrote it.
        calibration: samples for ranges and sensitivities.
        evaluation: samples for accuracy and verification.
        settings: preprocessing and choice of samples, for the manifest.
        fingerprint: changes when the samples do, as far as can be told cheaply.
    """

    name: str
    calibration: Split
    evaluation: Split
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What tells these samples from others, as JSON: what was made from them is stale when it changes."""
        return {"name": self.name, "fingerprint": self.fingerprint, **self.settings}

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.calibration.sample(0)[0].shape)
