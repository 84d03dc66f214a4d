"""Rank correlations against scipy, intervals against many draws, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hawq_tvm.core.errors import RunError, SensitivityError
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.measure.comparison import ORDER, Comparison, Measured, Truth, compare

from .conftest import NETWORKS, Run

LAYERS = [f"layer{i}" for i in range(20)]


def table(values: NDArray[np.float64], *, order: NDArray[np.float64] | None = None) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for index, name in enumerate(LAYERS):
        rows[name] = {"weights": {"4": values[index], "8": 0.0}}
        if order is not None:
            rows[name]["order"] = order[index]
    return {"layers": rows}


def truth(means: NDArray[np.float64], samples: int = 200, noise: float = 0.1, kind: Truth = "loss") -> Measured:
    draws = np.random.default_rng(7).normal(0, noise, (len(means), samples))
    return Measured("weights", "4", kind, means[:, None] + draws)


MEANS = np.linspace(1, 3, len(LAYERS))


def test_correlations_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for values in (generator.normal(size=20), generator.integers(0, 4, 20).astype(float), MEANS, -MEANS):
        measured = truth(generator.integers(0, 6, 20).astype(float), noise=0.0)
        (row,) = compare({"m": table(values)}, LAYERS, [measured]).rows
        wanted = measured.losses.mean(1)
        assert row.spearman == pytest.approx(stats.spearmanr(values, wanted).statistic)
        assert row.kendall == pytest.approx(stats.kendalltau(values, wanted).statistic)


def test_a_metric_that_says_the_same_of_every_layer_correlates_with_nothing() -> None:
    (row,) = compare({"m": table(np.ones(20))}, LAYERS, [truth(MEANS)]).rows
    assert (row.spearman, row.kendall, row.spearman_interval) == (0.0, 0.0, (0.0, 0.0))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Layers drawn from a normal pair of known rank correlation, 6/pi asin(r/2) (Kruskal 1958)."""
    r = 0.7
    wanted, held = 6 / np.pi * np.arcsin(r / 2), 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        pair = generator.multivariate_normal([0, 0], [[1, r], [r, 1]], 20)
        measured = Measured("weights", "4", "loss", np.repeat(pair[:, :1], 4, axis=1))
        low, high = compare({"m": table(pair[:, 1])}, LAYERS, [measured], seed=seed).rows[0].spearman_interval
        held += low <= wanted <= high
    assert 50 <= held <= 60


def test_the_best_is_trusted_and_what_is_not_told_apart_from_it() -> None:
    generator = np.random.default_rng(1)
    tables = {
        "good": table(MEANS + generator.normal(0, 0.15, 20)),
        "alike": table(MEANS + generator.normal(0, 0.15, 20)),
        "bad": table(generator.normal(size=20), order=MEANS),
    }
    found = compare(tables, LAYERS, [truth(MEANS)])
    trusted = {row.metric: row.trusted for row in found.rows}
    assert trusted == {f"bad{ORDER}": True, "good": trusted["good"], "alike": trusted["alike"], "bad": False}
    assert found.rows[0].metric == f"bad{ORDER}" and found.rows[-1].metric == "bad"
    (sentence,) = found.advice
    assert sentence.startswith(f"for the loss of weights at 4 bits trust bad{ORDER}: it correlates 1.00")
    assert "; behind it: " in sentence and sentence.endswith("bad")
    assert found.itself["weights loss"] > 0.95
    mean, error = found.losses["weights loss"]["layer19"]
    assert abs(mean - 3) < 4 * error == pytest.approx(4 * 0.1 / 200**0.5, rel=0.2)


def test_none_is_trusted_where_the_best_may_be_chance() -> None:
    values = np.random.default_rng(3).normal(size=20)
    found = compare({"m": table(values)}, LAYERS, [truth(np.ones(20), noise=1.0)])
    assert "trust none for the loss of weights at 4 bits: the best, m, correlates" in found.advice[0]
    assert abs(found.itself["weights loss"]) < 0.6, "halves of noise do not agree"


def test_noise_of_samples_widens_intervals() -> None:
    values = {"m": table(MEANS)}
    sure, unsure = (compare(values, LAYERS, [truth(MEANS, noise=noise)]).rows[0] for noise in (0.0, 8.0))
    assert sure.spearman_interval == (1.0, 1.0)
    assert unsure.spearman_interval[0] < unsure.spearman < 1


def test_metrics_without_these_bits_are_left_out() -> None:
    measured = Measured("inputs", "4", "kl", truth(MEANS).losses)
    found = compare({"m": table(MEANS, order=MEANS)}, LAYERS, [measured])
    assert found.rows == () and found.advice == () and "inputs kl" in found.itself


@pytest.mark.parametrize(("layers", "samples", "message"), [(3, 50, "3 layers"), (20, 3, "3 samples .* --samples")])
def test_too_few_are_told(layers: int, samples: int, message: str) -> None:
    measured = Measured("weights", "4", "loss", truth(MEANS).losses[:layers, :samples])
    with pytest.raises(
        SensitivityError, match=f"a rank correlation over {message}" if layers == 3 else "raise --samples"
    ):
        compare({"m": table(MEANS)}, LAYERS[:layers], [measured])


def test_seeds_repeat_and_json_keeps_all() -> None:
    found, again, other = (compare({"m": table(MEANS[::-1])}, LAYERS, [truth(MEANS)], seed=s) for s in (1, 1, 2))
    assert found == again
    assert found.rows[0].spearman == other.rows[0].spearman < 0
    data = JsonReader("x", RunError, "").parse(json.dumps(found.to_json()).encode())
    assert Comparison.from_json(data) == found
    with pytest.raises(RunError, match="layers is missing; make it again with hawq-tvm compare"):
        Comparison.from_json({"samples": "many"})


# the verb


def test_metrics_are_profiled_side_by_side_compared_and_chosen_by(tmp_path: Path, cli: Run) -> None:
    path = tmp_path / "run"
    quick = ("--hessian-samples", 6, "--hessian-probes", 4, "--power-iterations", 2, "--loss-samples", 6)
    named = ("profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "--bits", "w4a4,w4a8,w8a8", "-o", path)
    assert cli(*named, "--metric", "omega", "--metric", "sqnr,kl", *quick)[0] == 0
    assert {file.name for file in path.glob("sensitivity.*")} == {
        f"sensitivity.{m}.json" for m in ("omega", "sqnr", "kl")
    }
    costs = (path / "costs.json").read_text()
    assert "mean Hessian trace" in json.loads(costs)["sources"]["sensitivity"]
    before = json.loads((path / "manifest.json").read_text())["stages"]
    assert cli(*named, "--metric", "omega", "--metric", "sqnr,kl,eigenvalue", *quick)[0] == 0
    after = json.loads((path / "manifest.json").read_text())["stages"]
    assert {stage for stage in after if before.get(stage) != after[stage]} == {"profile eigenvalue"}
    more = ("--hessian-probes", 6)
    assert cli(*named, "--metric", "omega,sqnr,kl,eigenvalue", *quick, *more)[0] == 0
    probed = json.loads((path / "manifest.json").read_text())["stages"]
    changed = {stage for stage in probed if after[stage] != probed[stage]}
    assert changed == {"profile omega", "cost"}, "each metric has the settings that decide it alone"

    status, out, _ = cli("compare", path, "--samples", 8, "--trust-code")
    assert status == 0
    assert "weights at 4 bits, beside the result's divergence" in out and "eigenvalue's order" in out
    assert max(map(len, out.split("5 layers")[0].splitlines())) <= 80, "tables fit a narrow terminal"
    status, out, _ = cli("compare", path, "--samples", 8, "--trust-code", "--json")
    found = Comparison.from_json(json.loads(out))
    assert found.samples == 8
    assert {row.metric for row in found.rows if row.part == "inputs"} == {"omega", "sqnr", "kl", "eigenvalue"}

    status, _, err = cli("compare", path)
    assert status == 2 and "are not at hand, and compare rounds on them" in err and "--trust-code" in err

    chosen, costs = {}, (path / "costs.json").read_text()
    for metric in ("omega", "sqnr"):
        status, out, _ = cli("allocate", path, "--budget-size", "50%", "--choose-by", metric, "--caution", 0, "--json")
        assert status == 0
        chosen[metric] = json.loads(out)["sensitivity"]
        explained = json.loads(cli("explain", path, next(iter(json.loads(out)["bits"])), "--json")[1])
        assert explained["sensitivity"] == chosen[metric], "by the metric that it was chosen by"
    fronts = {}
    for metric in ("omega", "sqnr"):
        by = ("--choose-by", metric, "--caution", 0, "--json")
        fronts[metric] = json.loads(cli("allocate", path, "--pareto", "size,sensitivity", *by)[1])["points"]
        assert fronts[metric][-1]["sensitivity"] == json.loads(cli("allocate", path, *by)[1])["sensitivity"]
    assert fronts["omega"][-1]["sensitivity"] != fronts["sqnr"][-1]["sensitivity"]
    rows = json.loads((path / "sensitivity.sqnr.json").read_text())["layers"]
    assert chosen["omega"] != chosen["sqnr"] < sum(row["weights"]["4"] + row["inputs"]["4"] for row in rows.values())
    assert (path / "costs.json").read_text() == costs, "costs stay what was profiled"
    status, _, err = cli("allocate", path, "--choose-by", "loss")
    assert status == 2 and "was not profiled with loss; it has " in err
    status, _, err = cli("allocate", path, "--choose-by", "best")
    assert status == 2 and "a metric is one of omega, " in err


def test_there_must_be_something_to_compare(tmp_path: Path, cli: Run) -> None:
    path = tmp_path / "run"
    assert cli("profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "--bits", "8", "-o", path)[0] == 0
    status, _, err = cli("compare", path)
    assert status == 2
    assert "has no sensitivities to compare; make some with hawq-tvm profile" in err
