"""Float graph + samples -> ranges of every value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from hawq_tvm.backends.pytorch.threads import iterate_pieces
from hawq_tvm.calibration import AUTO, NetworkHistograms, make_observers
from hawq_tvm.calibration.observers import Tap
from hawq_tvm.core.given import check_ranges, override, settled_by
from hawq_tvm.core.quantizer import RangeTable, ranges_to_json
from hawq_tvm.core.reporter import Advance
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.posttraining.range_choice import Choice, Comparison, choose_ranges, samples_to_compare
from hawq_tvm.runs.artifacts import FLOAT_GRAPH, RANGES
from hawq_tvm.sources.data import batches
from hawq_tvm.stages.stage import Stage
from hawq_tvm.stages.work import Work

Progress = Callable[[int], None]
"""Called with the number of samples that have just been run."""


def calibrate(work: Work) -> Stage:
    """Ranges over the calibration samples, but for those that are given."""
    settings, given = work.settings, work.settings.ranges
    compared = {bits: compared_bits(work, bits) for bits in _widths(work)} if settings.observer == AUTO else {}

    def make(advance: Advance) -> None:
        graph, total = work.artifacts.float_graph, len(work.data.calibration)
        observers = make_observers(settings.observer)
        runs = 1 + len(compared) * len(observers) if compared else 0
        count = min(total, samples_to_compare(graph))
        progress = _counted(advance, total + runs * count)
        histograms = observe(work, progress)
        tables = {
            found.name: override(histograms.ranges(found, graph.nonnegative()), given, graph) for found in observers
        }
        origin = f"{settings.observer} over {total} samples of {work.data.name}"
        origin += f"; {len(given)} given" if given else ""
        if compared:
            samples = [batch.images for batch in batches(work.data.calibration, work.batch_size(), limit=count)]
            comparison = Comparison(graph, samples, threads=work.threads, progress=progress)
            ranges, choices = choose_ranges(
                tables, compared, lambda table, bits: comparison.divergence(table, compared[bits])
            )
            work.run.write_json(RANGES, described(origin, ranges, choices, count))
        else:
            (ranges,) = tables.values()
            work.run.write_json(RANGES, described(origin, ranges))

    options = {
        "observer": settings.observer,
        "data": work.data_key,
        "given": dict(given),
        "compared": {str(bits): config.to_json() for bits, config in compared.items()},
    }
    return Stage("calibrate", "calibrating ranges", make, options, reads=(FLOAT_GRAPH,), writes=(RANGES,))


def observe(work: Work, progress: Progress) -> NetworkHistograms:
    """Histograms of all values that the calibration samples make, but for those whose ranges are given."""
    settled = settled_by(work.settings.ranges, work.artifacts.float_graph)

    def run(x: Tensor, tap: Tap) -> None:
        work.float_module(x, tap=lambda name, value: None if name in settled else tap(name, value))

    def numbered() -> Iterator[tuple[int, Tensor]]:
        done = 0
        for batch in batches(work.data.calibration, work.batch_size()):
            yield done, batch.images
            done += len(batch.images)

    def observed(piece: tuple[int, Tensor]) -> NetworkHistograms:
        found = NetworkHistograms(first=piece[0])
        found.observe(run, piece[1])
        return found

    total = NetworkHistograms()
    for part in iterate_pieces(observed, numbered(), work.threads):
        total.merge(part)
        progress(part.samples)
    return total


def compared_bits(work: Work, width: int) -> BitConfig:
    """The bits at which observers are compared for a width: it is that of every layer's input, but for pins.

    Where bits are given, layers that have more there keep them.
    """
    if work.given is not None:
        layers = {name: Bits(8, max(width, bits.activation)) for name, bits in work.given.layers.items()}
    else:
        pins = work.settings.all_pins(work.layers, work.artifacts.float_graph.tied_groups())
        layers = {name: pins.get(name, Bits(8, width)) for name in work.layers}
    return work.as_stored(BitConfig(layers, f"activations of {width} bits"))


def _widths(work: Work) -> list[int]:
    """The bits that activations may be read at, and 8, which the rest stands at."""
    pairs = work.settings.pairs(work.layers) if work.given is None else work.given.layers.values()
    return sorted({8, *(pair.activation for pair in pairs)})


def _counted(advance: Advance, total: int) -> Progress:
    done = 0

    def progress(samples: int) -> None:
        nonlocal done
        done += samples
        advance(done, total)

    return progress


def described(
    origin: str, ranges: RangeTable, choices: dict[int, Choice] | None = None, samples: int = 0
) -> dict[str, Any]:
    """The JSON of the ranges: where they come from, how observers compared, and the table."""
    result: dict[str, Any] = {"origin": origin}
    if choices:
        taken = ", ".join(f"{choice.observer} at {bits} bits" for bits, choice in choices.items())
        result["origin"] = f"{origin}: {taken}"
        result["compared"] = {
            "measure": f"mean divergence of the output from the float network's over {samples} samples",
            **{str(bits): dict(choice.divergence) for bits, choice in choices.items()},
        }
    return {**result, "ranges": ranges_to_json(ranges)}


def known_ranges(work: Work) -> None:
    """Refuse names of an edited `ranges.json` that the network does not have, before anything is made of it.

    Raises:
        SettingsError: with the name, and what may have been meant.
    """
    if work.run.edited(RANGES):
        check_ranges(work.artifacts.ranges, work.artifacts.float_graph)
