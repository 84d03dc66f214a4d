"""Float graph + ranges + bits + samples -> integers, scales and biases of every layer."""

from __future__ import annotations

from collections.abc import Mapping

from hawq_tvm.core.activation_types import ActivationTypes
from hawq_tvm.core.given import scales_of
from hawq_tvm.core.hashing import file_sha256, json_sha256
from hawq_tvm.core.integerize import round_at_scales
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.core.reporter import Advance
from hawq_tvm.posttraining.solve import FINE_BITS, MOST_INPUTS, is_wide
from hawq_tvm.posttraining.walk import Walk
from hawq_tvm.runs.artifacts import BITS, FLOAT_GRAPH, RANGES, WEIGHTS
from hawq_tvm.runs.checkpoint import Checkpoint
from hawq_tvm.runs.weights_io import save_weights
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work

_READS = (FLOAT_GRAPH, RANGES, BITS)


def round(work: Work) -> Stage | None:
    """Rounding on the calibration samples.

    None where nearest integers and no correction are asked for, and where the samples that calibrated the run are not
    at hand: rounded weights of the same bits and ranges then stay, and others are rounded to nearest, with a word, at
    given scales where there are some.
    """
    settings, given = work.settings.rounding, work.settings.scales
    if not _rounds(work):
        return None
    if not work.can_calibrate:
        if not work.run.is_fresh(WEIGHTS):
            at = ", at the given scales where there are some, and are not corrected" if given else ""
            work.reporter.note(
                f"the samples that calibrated this run are not at hand; weights are rounded to nearest{at}, "
                "which costs accuracy below 8 bits"
            )
        return None
    options = {
        "rounding": vars(settings),
        "scales": json_sha256(dict(given)),
        "seed": work.settings.seed,
        "data": work.run.manifest["data"]["key"],
    }

    def make(advance: Advance) -> None:
        found = work.artifacts
        graph, total = found.float_graph, len(work.layers)
        types = ActivationTypes(graph, found.ranges, found.bits)
        count = work.rounding_samples
        if count < len(work.data.calibration):
            work.reporter.note(f"weights are rounded on {count} calibration samples, whose values fit into memory")
        wide = [node.name for node in graph.layers if is_wide(node) and found.bits.layers[node.name].weight < FINE_BITS]
        if wide and settings.method != "nearest":
            work.reporter.note(
                f"weights of {', '.join(wide)} are rounded to nearest and corrected: more than {MOST_INPUTS} inputs an "
                "output, so their second moments would not fit; give them 8 bits where accuracy falls"
            )
        checkpoint = Checkpoint(work.run, {**options, "files": [file_sha256(work.run.file(name)) for name in _READS]})
        shapes = {node.name: node.weight.shape for node in graph.layers if node.weight is not None}
        scales = {node.name: scales_of(given, node) for node in graph.layers}
        walk = Walk(graph, types, settings, scales=scales, seed=work.settings.seed, threads=work.threads)
        weights = walk.run(
            work.rounding_pieces(),
            done=checkpoint.found(shapes),
            keep=checkpoint.keep,
            progress=lambda done: advance(done, total),
        )
        work.run.write(WEIGHTS, lambda path: save_weights(weights, path))
        checkpoint.clear()

    return Stage("round", "rounding weights", make, options, reads=_READS, writes=(WEIGHTS,))


def rounded_weights(work: Work) -> Mapping[str, LayerWeights]:
    """The weights that were rounded for the bits and ranges that stand now.

    Where there are none, the layers of given scales, to nearest, which takes no samples; a layer that is not among them
    is rounded to nearest at max-abs scales.
    """
    return work.artifacts.weights if weights_file(work) else _at_given_scales(work)


def weights_file(work: Work) -> tuple[str, ...]:
    """The file that `rounded_weights` are read from, where they are read from one."""
    return (WEIGHTS,) if _rounds(work) and work.run.is_fresh(WEIGHTS) else ()


def _at_given_scales(work: Work) -> Mapping[str, LayerWeights]:
    bits, weights = work.artifacts.bits.layers, {}
    for node in work.artifacts.float_graph.layers:
        scales = scales_of(work.settings.scales, node)
        if scales is None:
            continue
        weights[node.name] = round_at_scales(node, bits[node.name].format, scales)
    return weights


def _rounds(work: Work) -> bool:
    """Whether anything is asked for but the nearest integers at max-abs scales."""
    return bool(work.settings.scales) or not work.settings.rounding.is_nearest
