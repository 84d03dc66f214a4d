"""PyTorch network -> float graph."""

from __future__ import annotations

import torch

from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.errors import AllocationError, did_you_mean
from hawq_tvm.core.given import check_scales, clip_to, stored_bits_of, unused_ranges
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
    model, settings = work.model, work.settings
    assert model is not None, "a verb that captures loads the network first"

    def make(_: Advance) -> None:
        generator = torch.Generator().manual_seed(settings.seed)
        example = torch.randn((2, *work.data.sample_shape), generator=generator)
        graph = capture_graph(model.module, example, name=model.name)
        if settings.clip_to_ranges:
            graph = clip_to(graph, settings.ranges)
        work.run.write(FLOAT_GRAPH, lambda path: save_float_graph(graph, path))

    options = {
        "model": model.fingerprint,
        "versions": dict(model.versions),
        "shape": work.data.sample_shape,
        "clips": dict(settings.ranges) if settings.clip_to_ranges else None,
    }
    return Stage("capture", "capturing the network", make, options, writes=(FLOAT_GRAPH,), always=True)


def known_names(work: Work) -> None:
    """Refuse pins, ranges, scales and stored bits of what the network does not have, as soon as it is captured.

    Raises:
        AllocationError: a pin, or a layer of given bits, that there is not; the message lists the layers.
        SettingsError: a range, scales or stored bits that do not fit; see `hawq_tvm.core.given`.
    """
    graph, settings = work.artifacts.float_graph, work.settings
    unknown = [name for name in settings.pins if name not in work.layers]
    if unknown:
        meant = did_you_mean(unknown[0], work.layers) or ";"
        raise AllocationError(f"pin for unknown layer '{unknown[0]}'{meant} the layers are {', '.join(work.layers)}")
    if work.given is not None:
        ActivationTypes(graph, {}, work.given)
    check_scales(settings.scales, graph)
    stored_bits_of(settings.stored_bits, graph)
    note = unused_ranges(settings.ranges, graph)
    if note is not None:
        work.reporter.note(note)
