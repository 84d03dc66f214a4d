"""Profiling's memory is that of one batch, however many there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FEW, MANY = 8, 40
SLACK = 24 << 20  # what an allocator keeps, one time more and one time less; a batch's graph is several times that


def peaks(samples: int) -> dict[str, int]:
    """Bytes at most by metric, of a process that mallocs large tensors from the system and gives them back."""
    command = [sys.executable, "-m", "tests.profile_peak", str(samples)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parent.parent
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc/self/clear_refs here")
def test_memory_does_not_grow_with_the_samples() -> None:
    """Five times the samples, and the most that any metric takes is what it was: no batch's graph outlives it."""
    few, many = peaks(FEW), peaks(MANY)
    assert few["omega"] > 2 * SLACK, "else nothing could be seen to grow"
    assert all(many[name] < few[name] + SLACK for name in few), (few, many)
