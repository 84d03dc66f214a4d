"""The cost table's latencies and energies on an accelerator that is simulated: nothing is run."""

from __future__ import annotations

from dataclasses import replace

from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.core.specs import Bits, Cost, CostTable
from hawq_tvm.ilp.simulators import Simulated, Workload, find_accelerator, workloads


def on_accelerator(costs: CostTable, graph: FloatGraph, name: str) -> CostTable:
    """The same costs with microseconds and microjoules of an accelerator.

    The accelerators know no codebooks: such weights are decoded before they get there, and take what 8 bits take.

    Args:
        costs: of the graph's layers.
        graph: from capture.
        name: one of `hawq_tvm.ilp.simulators.ACCELERATORS`. Latencies are of a batch of its own size, energies of a
            sample.

    Raises:
        AllocationError: an unknown accelerator, or a layer that it cannot hold.
    """
    accelerator = find_accelerator(name)
    known: dict[tuple[Workload, Bits], Simulated] = {}  # layers of one shape are simulated once

    def simulated(workload: Workload, bits: Bits, cost: Cost) -> Cost:
        key = (workload, bits)
        if key not in known:
            known[key] = accelerator.simulate(workload, bits.format.carried_bits, bits.activation)
        found = known[key]
        return replace(cost, latency_us=found.latency_us, latency_spread_us=None, energy_uj=found.energy_uj)

    works = workloads(graph)
    rows = tuple(
        replace(row, choices={bits: simulated(works[row.name], bits, cost) for bits, cost in row.choices.items()})
        for row in costs.layers
    )
    batch = f"a batch of {accelerator.batch}" if accelerator.batch > 1 else "a sample"
    source = f"simulated for {accelerator.name}, from {accelerator.origin}; nothing was run"
    has_energy = all(cost.energy_uj is not None for row in rows for cost in row.choices.values())
    energy = f"of a sample, {source}" if has_energy else f"not known: none is published for {accelerator.name}"
    return replace(
        costs, layers=rows, sources={**costs.sources, "latency_us": f"of {batch}, {source}", "energy_uj": energy}
    )
