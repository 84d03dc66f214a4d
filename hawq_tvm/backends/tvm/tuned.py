"""Which ways to compute a layer may be exchanged for one another, and a plan with those that tuning found.

Tuning does not change how values are stored: that is decided over the whole network, by costs of one kind. It chooses
among what reads and writes the same: kernels that offer it, and what each of them is free to choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

import tvm
from tvm_ffi.serialization import to_json_graph_str

from hawq_tvm.backends.tvm.records import TunedLayer, Tuning
from hawq_tvm.backends.tvm.storage import Plan
from hawq_tvm.core.hashing import json_sha256
from hawq_tvm.core.ops import WeightedOperator
from hawq_tvm.core.version import VERSION
from hawq_tvm.kernels import Offer

WORTH_TIMING = 1.5
"""An offer that is estimated to take so many times as long as the chosen one is not timed."""


@dataclass(frozen=True)
class Conditions:
    """What decides a layer's best way besides what it computes.

    Attributes:
        target: as TVM prints it, the CPU's LLVM name within.
        cpu: as its maker calls it.
        threads: of a call.
        network_bytes: as `Tuning.network_bytes`.
    """

    target: str
    cpu: str
    threads: int
    network_bytes: int

    def key(self, offers: Mapping[str, Offer], chosen: str) -> str:
        """What is computed, and out of which ways, as a hash: of the function that would be made untuned, of all that
        may be exchanged for it, and of the conditions.
        """
        function = to_json_graph_str(offers[chosen].build().function)
        return json_sha256(
            {
                "function": sha256(function.encode()).hexdigest(),
                "kernels": {name: len(offer.variants()) for name, offer in offers.items()},
                "target": self.target,
                "cpu": self.cpu,
                "threads": self.threads,
                "network_bytes": self.network_bytes,
                "versions": [VERSION, str(tvm.__version__)],
            }
        )


def exchangeable(plan: Plan) -> dict[str, dict[str, Offer]]:
    """By layer with weights, the offers by kernel that may stand for the chosen one, that one first.

    Layers with nothing to choose are left out.
    """
    found = {}
    for name, request in plan.requests.items():
        chosen = plan.offers[name]
        if not isinstance(request.node.op, WeightedOperator):
            continue
        own = {plan.kernels[name]: chosen}
        others = {
            kernel: offer
            for kernel, offer in plan.offered[name].items()
            if (offer.reads, offer.writes) == (chosen.reads, chosen.writes) and offer.cost < WORTH_TIMING * chosen.cost
        }
        if len(own | others) > 1 or len(chosen.variants()) > 1:
            found[name] = own | others
    return found


def with_tuned(plan: Plan, tuning: Tuning, conditions: Conditions) -> tuple[Plan, dict[str, TunedLayer]]:
    """A plan whose layers are computed as tuning found best, and what it found for each of them.

    What was found on another CPU, by another version or for other layers stands under other keys, and is not taken.
    """
    offers, kernels, found = dict(plan.offers), dict(plan.kernels), {}
    for name, others in exchangeable(plan).items():
        row = tuning.layers.get(conditions.key(others, kernels[name]))
        if row is None or row.kernel not in others:
            continue
        offer = others[row.kernel]
        if row.parameters != offer.parameters:
            variant = next((it for it in offer.variants() if it.parameters == row.parameters), None)
            if variant is None:
                continue
            offer = replace(offer, build=variant.build, parameters=variant.parameters)
        offers[name], kernels[name], found[name] = offer, row.kernel, row
    return replace(plan, offers=offers, kernels=kernels), found
