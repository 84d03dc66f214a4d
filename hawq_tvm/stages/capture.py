"""PyTorch network -> float graph."""

from __future__ import annotations

import torch

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.reporter import Advance
from hawq_tvm.frontend.capture import capture as capture_graph
from hawq_tvm.runs.artifacts import FLOAT_GRAPH
from hawq_tvm.runs.float_io import save_float_graph
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def capture(work: Work) -> Stage:
    """Capture the network anew each time: what it computes, not what its file says, decides what is up to date.

    A factory may build a network from modules that it imports and files that it reads. The graph holds all of that, its
    structure and its constants, and takes seconds.
    """
    model = work.model
    assert model is not None, "a verb that captures loads the network first"

    def make(_: Advance) -> None:
        generator = torch.Generator().manual_seed(work.settings.seed)
        example = torch.randn((2, *work.data.sample_shape), generator=generator)
        graph = capture_graph(model.module, example, name=model.name)
        work.run.write(FLOAT_GRAPH, lambda path: save_float_graph(graph, path))

    options = {
        "model": model.fingerprint,
        "versions": dict(model.versions),
        "shape": work.data.sample_shape,
    }
    return Stage("capture", "capturing the network", make, options, writes=(FLOAT_GRAPH,), always=True)


def known_pins(work: Work) -> None:
    """Refuse pins of layers that the network does not have.

    Raises:
        AllocationError: the message lists the layers.
    """
    unknown = [name for name in work.settings.pins if name not in work.layers]
    if unknown:
        raise AllocationError(f"pin for unknown layer '{unknown[0]}'; the layers are {', '.join(work.layers)}")
