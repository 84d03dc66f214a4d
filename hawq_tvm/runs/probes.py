"""Tensors that a long estimate had come to before it was cut off, so that the next one goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hawq_tvm.core.hashing import json_sha256
from hawq_tvm.runs.manifest import versions
from hawq_tvm.runs.rundir import Run


class Probes:
    """One file in the run's working copy.

    It counts only for the same question: the same float graph, settings and samples, asked of the same versions of the
    program and what it computes with.
    """

    def __init__(self, run: Run, name: str, question: Mapping[str, Any]) -> None:
        """Open it.

        Args:
            run: in the making.
            name: of what is estimated, which the file is called by.
            question: JSON values that decide the result.
        """
        self._run = run
        self._name = f"probes.{name}"
        self._key = json_sha256({"question": dict(question), "versions": dict(versions())})

    @property
    def found(self) -> dict[str, Tensor] | None:
        """What was kept; None where nothing was, or nothing that answers this question and can be read."""
        try:
            with safe_open(self._run.path / self._name, framework="pt") as file:
                if (file.metadata() or {}).get("key") != self._key:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (SafetensorError, OSError):
            return None

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Put these in the place of what was kept."""
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self._run.write(self._name, lambda path: save_file(whole, path, metadata={"key": self._key}))

    def clear(self) -> None:
        """Remove it: the result stands elsewhere."""
        (self._run.path / self._name).unlink(missing_ok=True)
