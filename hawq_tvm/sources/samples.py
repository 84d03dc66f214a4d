"""Samples side by side, and the two splits of a data set: what every source of data gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from hawq_tvm.sources.options import Preprocessing
from hawq_tvm.sources.splits import Split, identity


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
        name: as the user wrote it, in a form that can be printed.
        calibration: samples for ranges and sensitivities.
        evaluation: samples for accuracy and verification.
        settings: preprocessing and choice of samples, for the manifest.
        note: one sentence on how calibration and evaluation were kept apart, or that they were not; to be shown beside
            accuracies. Empty where there is nothing to say.
        source: sha256 of the Python file that made the samples, where one did.
        preprocessing: how an image of the user's becomes such a sample; None where that is not known.
    """

    name: str
    calibration: Split
    evaluation: Split
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    source: str = ""
    preprocessing: Preprocessing | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What tells these samples from others: what was made from them is stale when it changes.

        It is what JSON makes of it, lists for tuples, so that it equals what a manifest kept.
        """
        key: dict[str, Any] = json.loads(
            json.dumps({"name": self.name, "fingerprint": self.fingerprint, **self.settings})
        )
        return key

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.calibration.sample(0)[0].shape)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 that changes when the samples do; computed when it is first asked for.

        What is hashed, and what that costs:

        - samples in memory (arrays, pairs, and loaders, which are read whole): every byte, one to two seconds a GiB;
        - noise: its seed and shape;
        - image files in a folder: every byte, up to 512 MiB; of more, the name, size and time of change of each, and
          every byte of 512 of them;
        - image files in a zip file: name, size and checksum of each as its directory has them, so that nothing is read;
        - samples that are computed one by one (a PyTorch dataset, a list, an object with `sample`): 64 of each split,
          the first 16 and others evenly spread to the last, which are computed for it. One that draws at random comes
          out changed each time.
        """
        digest = hashlib.sha256(self.source.encode())
        for split in (self.calibration, self.evaluation):
            digest.update(f"{len(split)} samples;".encode())
            for part in identity(split, range(len(split))):
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
        return digest.hexdigest()
