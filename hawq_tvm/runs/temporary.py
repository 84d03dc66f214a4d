"""Runs that nobody named: they go with the network that was made in them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_run() -> Iterator[Path]:
    """Where a run can be made, which the caller then owns; gone if that fails.

    No object stands for the folder in the meantime: libraries keep frames of what called them (an exception within an
    import that is first done there), and with a frame all that its variables name.
    """
    path = Path(tempfile.mkdtemp(prefix="hawq_tvm-")) / "run"
    try:
        yield path
    except BaseException:
        remove_temporary_run(path)
        raise


def remove_temporary_run(path: Path) -> None:
    """Remove a run and the folder around it."""
    shutil.rmtree(path.parent, ignore_errors=True)
