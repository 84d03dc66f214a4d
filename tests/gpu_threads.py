"""Many threads that call one library, in the process that sees an emulated GPU: it has no PyTorch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hawq_tvm.backends.tvm.runtime import CompiledModule


class FromThreads:
    """A library, called from several threads at once."""

    def __init__(self, library: Path) -> None:
        self.module = CompiledModule(library)

    def run(self, x: np.ndarray[Any, Any], threads: int) -> list[np.ndarray[Any, Any]]:
        """The output of every sample alone, each from whichever thread is free."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda i: self.module.run(x[i : i + 1]), range(len(x))))

    def times(self, x: np.ndarray[Any, Any]) -> dict[str, float]:
        """Seconds of each call, and a call of the kind that latency is measured with."""
        self.module.prepare(x[: self.module.info.batch])()
        return self.module.call_times(x)
