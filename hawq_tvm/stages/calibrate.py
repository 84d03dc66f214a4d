"""Float graph + samples -> ranges of every value."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from hawq_tvm.calibration import make_observer, observe_ranges
from hawq_tvm.calibration.observers import Tap
from hawq_tvm.core.given import override, settled_by
from hawq_tvm.core.quantizer import ranges_to_json
from hawq_tvm.core.reporter import Advance
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, RANGES
from hawq_tvm.sources.data import batches
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work


def calibrate(work: Work) -> Stage:
    """Ranges over the calibration samples, but for those that are given."""
    given = work.settings.ranges

    def make(advance: Advance) -> None:
        total = len(work.data.calibration)

        def samples() -> Iterator[Tensor]:
            done = 0
            for batch in batches(work.data.calibration, work.batch_size()):
                yield batch.images
                done += len(batch.images)
                advance(done, total)

        graph = work.artifacts.float_graph
        settled = settled_by(given, graph)

        def observed(x: Tensor, tap: Tap) -> None:
            work.float_module(x, tap=lambda name, value: None if name in settled else tap(name, value))

        calibrated = observe_ranges(observed, samples(), make_observer(work.settings.observer))
        ranges = override(calibrated, given, graph)
        origin = f"{work.settings.observer} over {total} samples of {work.data.name}"
        origin += f"; {len(given)} given" if given else ""
        work.run.write_json(RANGES, {"origin": origin, "ranges": ranges_to_json(ranges)})

    options = {"observer": work.settings.observer, "data": work.data_key, "given": dict(given)}
    return Stage("calibrate", "calibrating ranges", make, options, reads=(FLOAT_GRAPH,), writes=(RANGES,))
