"""HAQ's codebooks for ResNet-50: who stands beside the published policy, within which bytes."""

from __future__ import annotations

from benchmarks.haq_codebooks import NETWORK, POLICY, indexed, policies, table_of
from hawq_tvm.core.specs import BitConfig, Bits, Cost, CostTable, LayerCosts


def table(*losses: float) -> CostTable:
    """Layers of 800 weights, of which each loses in its own measure."""
    rows = [
        LayerCosts(
            f"layer{n}",
            800,
            800,
            {pair: Cost(loss * 4.0**-pair.weight, pair.format.size_bytes(800), 1.0) for pair in NETWORK.pairs},
        )
        for n, loss in enumerate(losses)
    ]
    return CostTable(tuple(rows))


def test_the_published_policy_is_of_codebooks_that_there_are() -> None:
    assert set(POLICY) <= {pair.weight for pair in NETWORK.pairs} and len(POLICY) == 54
    assert NETWORK.pairs == tuple(Bits.parse(f"k{bits}a8") for bits in range(2, 7))


def test_the_program_and_uniform_bits_keep_within_the_published_bytes() -> None:
    costs = table(1.0, 100.0, 1.0)
    theirs = BitConfig(dict(zip(costs.names, map(indexed, (5, 3, 4)), strict=True)), "published")
    found = dict(policies(costs, theirs))
    pinned = "the same, layer2 as theirs"
    assert list(found) == ["HAQ's authors", "the program by kl", pinned, "uniform k4a8", "uniform k5a8"]
    assert found[pinned].layers["layer2"] == theirs.layers["layer2"]
    size = {who: costs.total(bits, "size_bytes") for who, bits in found.items()}
    assert (
        max(size["the program by kl"], size[pinned], size["uniform k4a8"])
        <= size["HAQ's authors"]
        < size["uniform k5a8"]
    )
    assert found["the program by kl"].layers["layer2"] != theirs.layers["layer2"]
    loss = {who: costs.total(bits, "sensitivity") for who, bits in found.items()}
    assert loss["the program by kl"] <= min(loss["HAQ's authors"], loss["uniform k4a8"])
    assert found["the program by kl"].layers["layer1"].weight > 4, "the most sensitive layer has the most"


def test_the_fewest_bits_have_none_below() -> None:
    costs = table(1.0, 1.0)
    found = dict(policies(costs, BitConfig.uniform(costs.names, indexed(2))))
    assert list(found)[3:] == ["uniform k2a8", "uniform k3a8"]


def test_sizes_stand_in_megabytes_and_losses_in_points() -> None:
    row = {"who": "uniform k3a8", "index_bytes": 9.6e6, "divergence": 0.0123, "integer_top1": 0.801}
    loss = {"difference": -0.02, "standard_error": 0.005}
    more, same = {"difference": 0.01, "standard_error": 0.004}, {"difference": 0.0, "standard_error": 0.0}
    text = table_of({"x": {**row, **loss, "beside_theirs": more}, "y": {**row, **loss, "beside_theirs": same}})
    assert text.splitlines()[2:] == [
        "| uniform k3a8 | 9.60 | 0.012 | 80.1% | -2.0 ± 0.5 | +1.0 ± 0.4 |",
        "| uniform k3a8 | 9.60 | 0.012 | 80.1% | -2.0 ± 0.5 |  |",
    ]
