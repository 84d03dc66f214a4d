"""What the allocator is told: sensitivities from the Hessian, and the cost table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.tvm.latency import LatencyTable
from hawq_tvm.calibration import TraceEstimate, hutchinson_traces, sensitivities
from hawq_tvm.core.errors import AllocationError
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.specs import Bits, Cost, CostTable, LayerCosts, parsed_bits
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.settings import HessianSettings
from hawq_tvm.sources.data import check_labels
from hawq_tvm.sources.samples import Batch

_FEWEST_PROBES, _MOST_PROBES = 64, 1024
_CHEAP_MACS = 10**11  # multiply-accumulates of the forward passes: about ten seconds of double backwards on two cores


def probe_limit(settings: HessianSettings, macs: int, batch: int) -> int:
    """Double backwards at which probing stops anyway: what the settings say, or as many as are cheap.

    Counted in work, not in time, so that the same network is probed alike on every machine.

    Args:
        settings: its `max_probes`, where it says any.
        macs: multiply-accumulates a sample.
        batch: samples differentiated at once.
    """
    if settings.max_probes:
        return settings.max_probes
    return min(max(_CHEAP_MACS // max(1, macs * batch), _FEWEST_PROBES), _MOST_PROBES)


def profile_sensitivity(
    network: FloatModule,
    batches: Iterable[Batch],
    widths: Iterable[int],
    settings: HessianSettings,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Hessian trace and Omega of every layer, as `sensitivity.json` holds them.

    The loss is cross-entropy against the labels, or against the network's own predictions where samples have none.

    Args:
        network: the float graph.
        batches: calibration samples.
        widths: candidate weight bits.
        settings: when to stop; see `probe_limit`.
        seed: of the probes.
        progress: called with the number of double backwards done.

    Raises:
        DataError: a label that the network has no class for.
    """
    classes = prod(network.graph.by_name[network.graph.output].shape)
    losses: list[Callable[[Mapping[str, Tensor]], Tensor]] = []
    counts, labelled = list[int](), True
    for batch in batches:
        check_labels(batch, classes, first=sum(counts))
        labels = batch.labels
        if labels is None:
            labelled = False
            with torch.no_grad():
                labels = network(batch.images).flatten(1).argmax(1)

        def loss(weights: Mapping[str, Tensor], x: Tensor = batch.images, y: Tensor = labels) -> Tensor:
            return F.cross_entropy(network(x, weights=weights).flatten(1), y)

        losses.append(loss)
        counts.append(len(batch.images))
    most = probe_limit(settings, sum(node.macs for node in network.graph.layers), max(counts, default=1))
    traces = hutchinson_traces(
        losses,
        network.weights(),
        samples=counts,
        target_error=settings.target_error,
        max_probes=max(2, most // max(1, len(losses))),
        seed=seed,
        progress=None if progress is None else lambda done: progress(done * len(losses)),
    )
    weights = {node.name: node.weight for node in network.graph.layers if node.weight is not None}
    omega = sensitivities(weights, traces, widths)
    target = "labels" if labelled else "the network's own predictions"
    return {
        "method": f"mean Hessian trace x ||Q(W) - W||^2 (Hutchinson, all layers jointly, {sum(counts)} samples, "
        f"cross-entropy against {target})",
        "batches": len(losses),
        "probes_per_batch": next(iter(traces.values())).probes,
        "target_error": settings.target_error,
        "converged": sum(trace.relative_error <= settings.target_error for trace in traces.values()),
        "note": _uncertainty(traces, settings.target_error, len(losses)),
        "layers": {
            name: {
                "mean_trace": trace.mean,
                "trace": trace.trace,
                "standard_error": trace.standard_error,
                "relative_error": trace.relative_error if isfinite(trace.relative_error) else None,
                "parameters": trace.parameters,
                "omega": {str(bits): value for bits, value in omega[name].items()},
            }
            for name, trace in traces.items()
        },
    }


def _uncertainty(traces: Mapping[str, TraceEstimate], target: float, batches: int) -> str | None:
    """What to do about estimates that did not converge; None where all did."""
    errors = {name: trace.relative_error for name, trace in traces.items() if trace.relative_error > target}
    if not errors:
        return None
    worst = max(errors, key=lambda name: errors[name])
    double_backwards = batches * traces[worst].probes
    return (
        f"the sensitivities of {len(errors)} of {len(traces)} layers are uncertain by more than {target:.0%}, that of "
        f"'{worst}' by {errors[worst]:.0%}; raise --hessian-probes (HessianSettings.max_probes) above the "
        f"{double_backwards} made, four times as many halve the errors"
    )


def cost_table(
    graph: FloatGraph,
    pairs: Iterable[Bits],
    *,
    sensitivity: Mapping[str, Any] | None,
    latency: LatencyTable | None,
) -> CostTable:
    """Put together what every layer costs at every pair.

    Args:
        graph: from capture.
        pairs: bit pairs, pins included.
        sensitivity: from `profile_sensitivity`; None where there is nothing to choose.
        latency: measured or given; None where it is not asked for.
    """
    rows = []
    for node in graph.layers:
        assert node.weight is not None
        profiled = None if sensitivity is None else sensitivity["layers"].get(node.name, {})
        choices = {}
        for pair in pairs:
            omega = 0.0 if profiled is None else _omega(profiled, node.name, pair.weight)
            microseconds = None if latency is None else latency.latency_us[node.name].get(pair)
            size_bytes = node.weight.size * pair.weight / 8
            choices[pair] = Cost(omega, size_bytes, node.macs * pair.weight * pair.activation, microseconds)
        error = None if profiled is None else profiled.get("relative_error")
        rows.append(LayerCosts(node.name, int(node.weight.size), node.macs, choices, error))
    one_pair = "not estimated: there is one bit pair to choose from"
    sources = {
        "sensitivity": one_pair
        if sensitivity is None
        else ". ".join(filter(None, [sensitivity["method"], sensitivity.get("note")])),
        "size_bytes": "weights x weight bits / 8; biases and multipliers are not counted",
        "bops": "multiply-accumulates x weight bits x activation bits, a sample (HAWQ-V3)",
        "latency_us": "not measured" if latency is None else latency.source,
    }
    return CostTable(tuple(rows), graph.tied_groups(), sources)


def _omega(profiled: Mapping[str, Any], layer: str, bits: int) -> float:
    try:
        omega: float = profiled["omega"][str(bits)]
    except KeyError:
        raise AllocationError(
            f"the sensitivities have no Omega of layer {layer!r} at {bits} weight bits; profile the network again"
        ) from None
    return omega


def read_latency_table(path: Path, layers: tuple[str, ...]) -> LatencyTable:
    """Microseconds that the user gives, as ``{layer: {"w4a4": us}}``, bare or under the key ``latency_us``.

    Raises:
        AllocationError: unreadable, not a table, a layer is missing, or a time that is no number of at least 0.
    """
    reader = JsonReader(
        f"the latency table {path}", AllocationError, 'give microseconds as {"layer": {"w4a4": 12.5, ...}, ...}'
    )
    data = reader.read(path)
    where = "latency_us" if isinstance(data, dict) and "latency_us" in data else ""
    table = reader.take(data[where] if where else data, Mapping[str, Mapping[str, float]], where=where)
    parsed: dict[str, dict[Bits, float]] = {}
    for name, row in table.items():
        parsed[name] = {parsed_bits(reader, name, bits): us for bits, us in row.items()}
        if len(parsed[name]) < len(row):
            raise reader.fault(f"layer {name!r} has two times for one pair of bits")
    missing = [name for name in layers if name not in parsed]
    if missing:
        raise AllocationError(
            f"the latency table {path} has no layer '{missing[0]}'; the layers are {', '.join(layers)}"
        )
    return LatencyTable(parsed, f"given by {path}")
