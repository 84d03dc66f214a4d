"""This machine, as every part may ask: its usable cores, and where what was compiled is kept for the user."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_home() -> Path:
    """``$XDG_CACHE_HOME/hawq_tvm``, by default ``~/.cache/hawq_tvm``; each cache is a folder in it."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "hawq_tvm"
