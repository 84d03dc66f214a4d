"""What an allocator that searches may use of a run: its network, simulated, and the samples that calibrated it."""

from __future__ import annotations

import torch
from torch import Tensor

from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.hashing import file_sha256, json_sha256
from hawq_tvm.core.reporter import Advance
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, RANGES, sensitivity_file
from hawq_tvm.runs.manifest import versions
from hawq_tvm.search import MEASURING, Resources
from hawq_tvm.search.simulated import SimulatedAccuracy
from hawq_tvm.search.states import layer_states
from hawq_tvm.sources.data import batches
from hawq_tvm.stages.profile import candidate_widths, rounded_alone
from hawq_tvm.stages.work import Work

_EIGENVALUE = "eigenvalue"
"""The metric of which HAWQ's order is made."""


def search_resources(work: Work, advance: Advance) -> Resources:
    """What `hawq_tvm.search` is given for a run.

    Only an allocator that measures accuracy gets a network to measure: its weights are rounded at every candidate
    width first. It is right on a sample where it names the sample's label, or without labels the float network's class.

    Args:
        work: profiled.
        advance: told of each measurement.

    Raises:
        AllocationError: the allocator measures, and the samples are not at hand.
    """
    settings = work.settings
    if settings.solver not in MEASURING:
        return Resources(evaluations=settings.evaluations, seed=settings.seed, curvatures=_curvatures(work))
    if not work.can_calibrate:
        raise AllocationError(
            f"the solver '{settings.solver}' measures accuracy on the samples that calibrated the run, and they are "
            "not at hand; choose bits where they are, as hawq-tvm run does, or take another --solver"
        )
    graph = work.artifacts.float_graph
    images, labels = _samples(work)
    weights = rounded_alone(work, candidate_widths(work)[0])
    accuracy = SimulatedAccuracy(graph, work.artifacts.ranges, weights, images, labels, threads=work.threads)
    question = {
        "files": [file_sha256(work.run.file(name)) for name in (FLOAT_GRAPH, RANGES)],
        "rounding": vars(settings.rounding),
        "scales": json_sha256(dict(settings.scales)),
        "seed": settings.seed,
        "data": work.data_key,
        "versions": dict(versions()),
    }
    return Resources(
        lambda bits: accuracy(work.as_stored(bits)),
        question=json_sha256({**question, "stored": [settings.residual_bits, dict(settings.stored_bits)]}),
        evaluations=settings.evaluations,
        seed=settings.seed,
        states=layer_states(graph),
        advance=advance,
    )


def search_reads(work: Work) -> tuple[str, ...]:
    """The files of the run that the allocator looks at beside the cost table."""
    if work.settings.solver in MEASURING:
        return FLOAT_GRAPH, RANGES
    return (sensitivity_file(_EIGENVALUE),) if _ranks_by_eigenvalue(work) else ()


def _ranks_by_eigenvalue(work: Work) -> bool:
    """Whether HAWQ's order is asked for and its eigenvalues were profiled."""
    return work.settings.solver == "hawq" and _EIGENVALUE in work.artifacts.profiled


def _curvatures(work: Work) -> dict[str, float]:
    """The top eigenvalue of each layer's Hessian, of which the table's order is S_i = lambda_i / n_i."""
    if not _ranks_by_eigenvalue(work):
        return {}
    orders = {name: row["order"] for name, row in work.artifacts.sensitivity(_EIGENVALUE)["layers"].items()}
    return {
        node.name: orders[node.name] * node.weight.size
        for node in work.artifacts.float_graph.layers
        if node.weight is not None and orders.get(node.name) is not None
    }


def _samples(work: Work) -> tuple[Tensor, Tensor]:
    """The calibration samples, each with its label, or the float network's class."""
    images, labels = list[Tensor](), list[Tensor]()
    for batch in batches(work.data.calibration, work.batch_size()):
        images.append(batch.images)
        with torch.no_grad():
            classes = work.float_module(batch.images).flatten(1).argmax(1)
        labels.append(classes if batch.labels is None else batch.labels)
    return torch.cat(images), torch.cat(labels)
