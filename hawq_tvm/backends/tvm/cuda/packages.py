"""Where NVIDIA's programs and libraries lie: a toolkit's, and those of PyPI's packages. Standard library alone."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

TOOLKIT = "/usr/local/cuda/bin"
"""Where a CUDA toolkit's programs lie by default."""


@cache
def package_roots() -> tuple[Path, ...]:
    """The folders that hold their ``bin``, ``include`` and ``lib``, such as ``site-packages/nvidia/cu13``."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    return tuple(sorted(found for folder in folders or () for found in Path(folder).glob("cu[0-9]*")))
