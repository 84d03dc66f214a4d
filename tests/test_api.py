from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hawq_tvm
from hawq_tvm import Bits, Budget, DataOptions, HawqError, HessianSettings, pipeline
from hawq_tvm.api import QuantizedNetwork
from hawq_tvm.core.errors import (
    AllocationError,
    CalibrationError,
    DataError,
    InfeasibleBudget,
    RunError,
    SettingsError,
)
from hawq_tvm.stages.work import Work

from . import networks
from .builders import samples

QUICK = HessianSettings(samples=8, max_probes=4)


@pytest.fixture(scope="module")
def network() -> QuantizedNetwork:
    data = {"calibration": samples(16), "evaluation": (samples(8, seed=3), torch.arange(8) % 5)}
    return hawq_tvm.quantize(networks.make("Residual"), data, budget=Budget(size="50%"), hessian=QUICK)


def test_a_module_and_tensors(network: QuantizedNetwork) -> None:
    assert [node.name for node in network.graph][:2] == ["stem", "pool"]
    assert {bits.weight for bits in network.bits.layers.values()} == {4, 8}
    assert network.bits.layers["stem"] == network.bits.layers["fc"] == Bits(8, 8), "the ends are pinned"
    assert network.accuracy.samples == 8
    assert network.accuracy.float_top1 is not None
    size = network.costs.total(network.bits, "size_bytes")
    lowest, highest = (
        sum(row.parameters * (8 if row.name in ("stem", "fc") else b) / 8 for row in network.costs.layers)
        for b in (4, 8)
    )
    assert size <= (lowest + highest) / 2


def test_compile_verify_run_and_benchmark(network: QuantizedNetwork) -> None:
    module = network.compile(batch=4)
    assert module.info.batch == 4
    report = network.verify(samples=8)
    assert report.ok
    assert report.samples == 8
    x = samples(6, seed=9)
    logits = network(x)
    assert logits.shape == (6, 5)
    with torch.no_grad():
        assert np.corrcoef(logits.ravel(), networks.make("Residual")(x).numpy().ravel())[0, 1] > 0.9
    bench = network.benchmark(seconds=0.2, threads=1)
    assert bench.contenders[0].name == "hawq_tvm"
    assert {item.name for item in bench.contenders} >= {"PyTorch fp32", "ONNX Runtime fp32"}
    assert all(item.median_us > 0 for item in bench.contenders)
    assert set(bench.layers_us) == set(network.compile().info.calls)
    assert (bench.threads, bench.batch) == (1, 4)


def test_calling_a_saved_network_leaves_it_as_it_is(network: QuantizedNetwork, tmp_path: Path) -> None:
    network.compile(batch=8)
    saved = network.save(tmp_path / "new" / "run")
    before = (saved / "manifest.json").read_bytes()
    back = hawq_tvm.load(saved)
    assert np.array_equal(back(samples(3)), network(samples(3)))
    assert (saved / "manifest.json").read_bytes() == before
    assert back.compile().info.batch == 8, "a batch stays as it was"
    with pytest.raises(DataError, match="an array of numbers"):
        back("hello")


def test_a_network_is_shown_in_words_and_in_a_notebook(network: QuantizedNetwork, tmp_path: Path) -> None:
    assert "residual on python object: 5 layers" in repr(network)
    assert network._repr_html_().startswith("<")
    assert "residual" in network._repr_html_()
    saved = network.save(tmp_path / "kept")
    assert "<title>hawq_tvm: python object residual</title>" in (saved / "report.html").read_text(), "saved too"


def test_an_option_that_is_refused_is_forgotten(network: QuantizedNetwork) -> None:
    with pytest.raises(HawqError, match="batch: a whole number of at least 1, got -1"):
        network.compile(batch=-1)
    with pytest.raises(SettingsError, match="at least 1 sample, got 0"):
        network.verify(samples=0)
    assert network.verify(samples=3).samples == 3
    assert network.verify().samples == 8


def test_a_full_disk_leaves_nothing_where_it_was_saved(
    network: QuantizedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    def full(source: object, target: object, **options: object) -> None:
        Path(str(target)).mkdir()
        raise shutil.Error([("a", "b", f"[Errno 28] {os.strerror(errno.ENOSPC)}: 'b'")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(RunError, match="no room to write"):
        network.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_settings_that_make_no_sense() -> None:
    network, data = networks.make("Residual"), samples(8)
    with pytest.raises(SettingsError, match="a budget is a hawq_tvm.Budget"):
        hawq_tvm.quantize(network, data, budget="60%")  # type: ignore[arg-type]
    with pytest.raises(AllocationError, match="a share is written '60%'"):
        Budget(size=0.6)
    for bad in (-1, 2**63, None, 1.5):
        with pytest.raises(SettingsError, match="give a whole number from 0 to 2"):
            hawq_tvm.quantize(network, data, bits=8, seed=bad)  # type: ignore[arg-type]
    for settings in ({"samples": 0}, {"max_probes": 1}, {"target_error": float("nan")}, {"batch": 0}):
        with pytest.raises(SettingsError, match="of the Hessian"):
            HessianSettings(**settings)


def test_save_and_load(network: QuantizedNetwork, tmp_path: Path) -> None:
    saved = network.save(tmp_path / "run")
    back = hawq_tvm.load(saved)
    assert back.graph.fingerprint() == network.graph.fingerprint()
    assert back.verify().ok, "on the golden input, since the samples were Python objects"
    assert back.bits == network.bits
    with pytest.raises(RunError, match="exists; save to another path"):
        network.save(saved)
    with pytest.raises(RunError, match="does not exist"):
        hawq_tvm.load(tmp_path / "nothing")


def test_the_temporary_run_goes_with_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where something keeps the frames of its making, as torch does of whoever exports first."""
    kept, perform = [], pipeline.perform

    def perform_and_keep(work: Work, stages: Any) -> None:
        kept.append(sys._getframe())
        perform(work, stages)

    monkeypatch.setattr(pipeline, "perform", perform_and_keep)
    made = hawq_tvm.quantize(networks.make("Alias"), samples(8), bits=[8])
    monkeypatch.undo()
    other = made.allocate()
    paths = made.path, other.path
    assert kept and all(path.exists() for path in paths)
    del made
    assert [path.parent.exists() for path in paths] == [False, True]
    del other
    assert not paths[1].parent.exists()


def test_no_temporary_run_is_left_where_none_can_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InfeasibleBudget):
        hawq_tvm.quantize(networks.make("Alias"), samples(8), bits=[8], budget=Budget(size=1))
    assert not list(tmp_path.iterdir())


def test_one_pair_needs_no_hessian() -> None:
    made = hawq_tvm.quantize(networks.make("Concat"), samples(8), bits=["w4a8"], pin_ends=False)
    assert set(made.bits.layers.values()) == {Bits(4, 8)}
    assert not (made.path / "sensitivity.json").exists()
    assert made.costs.sources["sensitivity"].startswith("not estimated")


def test_pins_and_observers_are_followed() -> None:
    made = hawq_tvm.quantize(
        networks.make("Residual"), samples(8), bits=[8], pins={"conv2": "w2a8"}, observer="max", pin_ends=False
    )
    assert made.bits.layers["conv2"] == Bits(2, 8)
    assert abs(made.graph.node("conv2").op.weight).max() <= 1


def test_bad_input_is_told_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    network = networks.make("Residual")
    with pytest.raises(InfeasibleBudget):
        hawq_tvm.quantize(network, samples(8), budget=Budget(size=10), hessian=QUICK)
    with pytest.raises(CalibrationError):
        hawq_tvm.quantize(network, samples(8) * float("nan"), bits=[8])
    with pytest.raises(DataError):
        hawq_tvm.quantize(network, torch.zeros(0, 3, 12, 12), bits=[8])
    with pytest.raises(HawqError, match="torch.export could not trace the network on an input of shape"):
        hawq_tvm.quantize(network, torch.zeros(4, 1, 12, 12), bits=[8])
    with pytest.raises(HawqError, match="load them into the module"):
        hawq_tvm.quantize(network, samples(8), weights="w.safetensors")
    table = tmp_path / "table.json"
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(AllocationError, match="table.json: not UTF-8 at byte 0"):
        hawq_tvm.quantize(network, samples(8), latency_table=table, hessian=QUICK)
    table.unlink()
    assert list(tmp_path.iterdir()) == []


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match="a label is 7, and the network has 5 classes"):
        hawq_tvm.quantize(networks.make("Residual"), (samples(8), torch.arange(8)), bits=[8])


def test_data_options_limit_samples() -> None:
    options = DataOptions(calibration_samples=5, evaluation_samples=3)
    made = hawq_tvm.quantize(networks.make("Alias"), samples(20), bits=[8], data_options=options)
    assert made.accuracy.samples == 3
    assert "over 5 samples" in (made.path / "ranges.json").read_text()


def test_a_network_of_the_users_own_size() -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(20, 30), nn.Linear(30, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    torch.manual_seed(0)
    made = hawq_tvm.quantize(Vector(), torch.randn(32, 20), bits=[8])
    assert made.verify(samples=32).ok


def test_another_network_of_the_same_profile(network: QuantizedNetwork) -> None:
    before = dict(network.bits.layers)
    smaller = network.allocate(Budget(size="10%"))
    assert network.costs.total(smaller.bits, "size_bytes") < network.costs.total(network.bits, "size_bytes")
    assert dict(network.bits.layers) == before, "the first stays as it is"
    assert smaller.accuracy.samples == 8 and smaller.graph.name == network.graph.name
    given = network.allocate(bits=network.bits)
    assert given.bits.layers == network.bits.layers
    free = network.allocate(pins={"conv2": "w4a8"})
    assert free.bits.layers["conv2"] == Bits(4, 8)
    with pytest.raises(SettingsError, match="give one or the other"):
        network.allocate(Budget(size=5), bits=network.bits)
    with pytest.raises(InfeasibleBudget):
        network.allocate(Budget(size=5))


def test_the_front_of_a_network(network: QuantizedNetwork) -> None:
    front = network.pareto("bops,sensitivity", points=None)
    assert front.axes == ("bops", "sensitivity") and front.is_whole
    for point in front.points:
        assert network.costs.total(point.bits, "bops") == point.totals["bops"]
    assert {point.accuracy for point in front.points} == {None}
    measured = network.pareto("bops,accuracy", points=2)
    assert all(point.accuracy is not None for point in measured.points)
    assert measured.points[0].accuracy == network.allocate(bits=measured.points[0].bits).accuracy.integer_top1
