"""Runs with ranges, scales and stored bits of the user's, from the settings to the integers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hawq_tvm
from hawq_tvm.core.errors import AllocationError, RunError, SettingsError
from hawq_tvm.core.float_ir import Clip
from hawq_tvm.core.quantizer import Range
from hawq_tvm.core.reporter import Reporter
from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.provenance import stored_settings
from hawq_tvm.runs.rundir import MANIFEST, open_run
from hawq_tvm.settings import Settings, parse_stored_bits
from hawq_tvm.stages.capture import known_names
from hawq_tvm.stages.work import Work

from . import networks
from .builders import samples, uniform
from .conftest import NETWORKS, Run

DOCUMENT = Path(__file__).parent.parent / "docs" / "ranges.md"


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def quantized(**options: Any) -> hawq_tvm.QuantizedNetwork:
    data = {"calibration": samples(8), "evaluation": samples(4, seed=3)}
    return hawq_tvm.quantize(networks.make("Residual"), data, **{"bits": 4, "observer": "max", **options})


@pytest.fixture(scope="module")
def plain() -> hawq_tvm.QuantizedNetwork:
    """The network with nothing given."""
    return quantized()


def found(network: hawq_tvm.QuantizedNetwork) -> Artifacts:
    return Artifacts(open_run(network.path))


# settings


def test_settings_survive_json_with_what_was_given() -> None:
    settings = Settings(
        ranges={"a": 3.0, "b": (-1.0, 2.0), "c": {4: 1.0, 8: (0.0, 2.0)}},
        clip_to_ranges=True,
        scales={"a": 0.5, "b": (0.5, 0.25)},
        residual_bits=4,
        stored_bits={"z": 7, "a.*": 8},
    )
    again = Settings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings
    assert list(again.stored_bits) == ["z", "a.*"], "their order counts"
    for key, bad in (("ranges", {"a": -1}), ("scales", {"a": [0]}), ("stored_bits", {"a": 9}), ("residual_bits", 1)):
        with pytest.raises((RunError, SettingsError), match="a"):
            Settings.from_json({**settings.to_json(), key: bad})


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(SettingsError, match="there are no ranges to clip to; give them with --ranges"):
        Settings(clip_to_ranges=True)
    with pytest.raises(SettingsError, match="stored bits of fc: at most 8, got 9"):
        Settings(stored_bits={"fc": 9})
    with pytest.raises(SettingsError, match="stored bits of residuals: a whole number of at least 2, got 1"):
        Settings(residual_bits=1)


@pytest.mark.parametrize("text", ["conv1", "=4", "conv1=", "conv1=w8", "conv1=9", "conv1=1", "conv1=" + "4" * 5000])
def test_stored_bits_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match="stored bits are written NAME=8 or 'layer4"):
        parse_stored_bits([text])


def test_the_stored_bits_said_last_stand_last() -> None:
    assert list(parse_stored_bits(["a=4", "b.*=8", "a=7"]).items()) == [("b.*", 8), ("a", 7)]


# runs


def test_given_ranges_are_those_of_the_integers() -> None:
    network = quantized(ranges={"input": 2.0, "conv1": {4: 1.5}, "project": 3.0})
    ranges, types = found(network).ranges, network.graph.types
    assert ranges["x"] == Range(-2.0, 2.0)
    assert ranges["project"] == Range(0.0, 3.0)
    by_width = ranges["conv1"]
    assert not isinstance(by_width, Range)
    assert (by_width[4], by_width[8] != by_width[4]) == (Range(0.0, 1.5), True)
    assert types["conv1"].scale == 1.5 / 15
    assert types["project"].scale == 3.0 / 255
    origin = json.loads((network.path / "ranges.json").read_text())["origin"]
    assert re.fullmatch(r"max over 8 samples of .*; 3 given", origin)
    clips = {node.name: node.clip for node in found(network).float_graph}
    assert clips["conv1"] == Clip(0.0, float("inf")), "the float network is as it was"


def test_trained_clips_are_a_part_of_the_float_network(plain: hawq_tvm.QuantizedNetwork) -> None:
    clipped = quantized(ranges={"conv1": 0.25, "project": 0.5}, clip_to_ranges=True)
    clips = {node.name: node.clip for node in found(clipped).float_graph}
    assert (clips["conv1"], clips["project"], clips["stem"]) == (Clip(0, 0.25), Clip(0, 0.5), Clip(0, float("inf")))
    before, after = found(plain).ranges, found(clipped).ranges
    assert after["stem"] == before["stem"]
    assert after["gap"].hi <= 0.5 < before["gap"].hi, "what lies behind is calibrated on clipped values"


def test_residuals_and_single_values_are_stored_as_asked(plain: hawq_tvm.QuantizedNetwork) -> None:
    network = quantized(residual_bits=4, stored_bits={"conv?": 6, "conv2": 5})
    types = network.graph.types
    assert (str(types["conv1"].dtype), str(types["conv2"].dtype)) == ("u6", "s5")
    assert (network.bits.residual, network.bits.stored) == (4, {"conv1": 6, "conv2": 5})
    assert str(quantized(residual_bits=4).graph.types["conv2"].dtype) == "s4"
    assert str(plain.graph.types["conv2"].dtype) == "s8"


def test_what_the_options_say_goes_before_given_bits(plain: hawq_tvm.QuantizedNetwork) -> None:
    run, given = open_run(plain.path), BitConfig({}, residual=3, stored={"conv1": 7, "conv2": 6})
    layers = uniform("Residual", Bits(4, 4))
    own = Work(run, Settings(), given=given).as_stored(layers)
    assert (own.layers, own.residual, own.stored) == (layers.layers, 3, {"conv1": 7, "conv2": 6})
    said = Work(run, Settings(residual_bits=5, stored_bits={"conv2": 4}), given=given).as_stored(layers)
    assert (said.residual, said.stored) == (5, {"conv1": 7, "conv2": 4})
    assert Work(run, Settings(), given=None).as_stored(layers).residual == 8


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ranges": {"cnv1": 3.0}}, "there is a range for 'cnv1', .*; did you mean conv1"),
        ({"ranges": {"cnv1": 3.0}, "clip_to_ranges": True}, "there is a range for 'cnv1'"),
        ({"scales": {"stm": 0.5}}, "there are scales for the layer 'stm', .*; did you mean stem"),
        ({"scales": {"stem": [0.5, 0.25]}}, "layer 'stem' has 8 output channels and 2 given scales; give 8"),
        ({"stored_bits": {"cnv*": 4}}, "there are stored bits for 'cnv"),
        ({"ranges": "nowhere.json"}, "the ranges nowhere.json: cannot be read"),
        ({"scales": Path("nowhere.json")}, "the scales nowhere.json: cannot be read"),
        (
            {"ranges": {"project": 1e-9}},
            "layer 'project': .*output range is far smaller than its accumulator's",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(hawq_tvm.HawqError, match=told):
        quantized(**options)


def test_given_bits_of_other_layers_and_values_are_refused_before_calibration(plain: hawq_tvm.QuantizedNetwork) -> None:
    run = open_run(plain.path)
    layers = dict(uniform("Residual", Bits(4, 4)).layers)
    for given, told in (
        (BitConfig({**layers, "conv9": Bits(4, 4)}), "bits for unknown layer 'conv9'"),
        (BitConfig(layers, stored={"conv9": 4}), "stored bits for the unknown value 'conv9'"),
    ):
        with pytest.raises(AllocationError, match=told):
            known_names(Work(run, Settings(), given=given))
    with pytest.raises(AllocationError, match="pin for unknown layer 'conv9'; did you mean conv.. the layers are stem"):
        known_names(Work(run, Settings(pins={"conv9": Bits(8, 8)})))
    reporter = Notes()
    known_names(Work(run, Settings(ranges={"fc": 1.0}), reporter=reporter))
    (note,) = reporter.notes
    assert "'fc' is the network's result" in note


def test_ranges_that_clip_nearly_everything_work() -> None:
    network = quantized(ranges={"conv1": 1e-3, "conv2": 1e-3, "project": 1e-3}, clip_to_ranges=True)
    assert network.accuracy.samples == 4


def test_samples_without_labels_and_fewer_than_are_asked_for() -> None:
    options = hawq_tvm.DataOptions(calibration_samples=1000, evaluation_samples=1000)
    network = quantized(ranges={"conv1": 1.0}, data_options=options)
    assert (network.accuracy.samples, network.accuracy.float_top1) == (4, None)
    assert "over 8 samples" in json.loads((network.path / "ranges.json").read_text())["origin"]


def test_changed_ranges_are_taken_up_and_the_file_is_not_needed_again(tmp_path: Path, cli: Run) -> None:
    file, path = tmp_path / "r.json", tmp_path / "run"
    given = ("--ranges", file, "--bits", "4", "-o", path)

    def profiled(ranges: dict[str, float], *more: str) -> dict[str, Any]:
        file.write_text(json.dumps({"ranges": ranges}))
        status, _, err = cli("profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", *given, *more)
        assert status == 0, err
        stages: dict[str, Any] = json.loads((path / MANIFEST).read_text())["stages"]
        return stages

    first = profiled({"conv1": 1.0})
    assert profiled({"conv1": 1.0})["calibrate"] == first["calibrate"]
    second = profiled({"conv1": 2.0})
    assert second["calibrate"] != first["calibrate"]
    assert second["capture"] == first["capture"], "the float network is the same"
    third = profiled({"conv1": 2.0}, "--clip-to-ranges")
    assert third["capture"]["files"] != second["capture"]["files"]
    fourth = profiled({"conv1": 0.5}, "--clip-to-ranges")
    assert fourth["capture"]["files"] != third["capture"]["files"]
    file.unlink()
    assert stored_settings(open_run(path)).ranges == {"conv1": 0.5}
    assert cli("allocate", path, "--residual-bits", "4", "--stored-bits", "conv*=6")[0] == 0
    bits = Artifacts(open_run(path)).bits
    assert (bits.residual, bits.stored) == (4, {"conv1": 6, "conv2": 6})


def test_a_cost_table_alone_knows_layers_and_no_values(
    plain: hawq_tvm.QuantizedNetwork, tmp_path: Path, cli: Run
) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps(plain.costs.to_json()))
    status, out, _ = cli("allocate", costs, "--residual-bits", "4", "--json")
    assert (status, json.loads(out)["residual"]) == (0, 4)
    status, _, err = cli("allocate", costs, "--stored-bits", "conv1=4")
    assert status == 2
    assert f"stored bits are of values, which {costs} does not know; give the run directory" in err


def test_a_run_that_is_not_so_far_names_the_verbs_that_are_missing(tmp_path: Path, cli: Run) -> None:
    path = tmp_path / "run"
    assert cli("profile", f"{NETWORKS}:residual", "--data", f"{NETWORKS}:samples", "--bits", "8", "-o", path)[0] == 0

    def told(verb: str, *arguments: str) -> str:
        status, _, err = cli(verb, path, *arguments)
        assert status == 2
        return err.splitlines()[-1]

    both = f"make it with hawq-tvm allocate {path}, then hawq-tvm compile {path}"
    assert told("compile") == f"error: {path} has no bits.json; make it with hawq-tvm allocate {path}"
    assert told("inspect") == f"error: {path} has no model.onnx; {both}"
    for verb in ("verify", "bench"):
        assert told(verb) == f"error: {path} has no model.llvm.so; {both} --target llvm"
    with pytest.raises(RunError, match=re.escape(both)):
        hawq_tvm.load(path)
    assert cli("allocate", path)[0] == 0
    for verb in ("verify", "bench"):
        assert told(verb).endswith(f"has no model.llvm.so; make it with hawq-tvm compile {path} --target llvm")


def test_sensitivities_are_of_given_scales() -> None:
    """A scale far too wide costs much; the other layers lose what they lost. Omega looks at the same weights."""

    def lost(**options: Any) -> dict[str, float | None]:
        costs = quantized(bits=[4, 8], metric="kl", **options).costs
        return {layer.name: layer.choices[Bits(4, 4)].sensitivity for layer in costs.layers}

    free, given = lost(), lost(scales={"project": 1.0})
    assert given.pop("project") > 3 * free.pop("project")
    assert given == free


def test_edited_ranges_are_compiled_as_they_stand_and_a_slip_is_told(
    plain: hawq_tvm.QuantizedNetwork, tmp_path: Path, cli: Run
) -> None:
    path = plain.save(tmp_path / "run")
    file = path / "ranges.json"
    table = json.loads(file.read_text())
    table["ranges"]["conv1"] = [0.0, 0.5]
    file.write_text(json.dumps(table))
    status, _, err = cli("compile", path)
    assert status == 0
    assert f"{path}/ranges.json was edited by hand; compiling it as it stands" in " ".join(err.split())
    types = Artifacts(open_run(path)).graph.types
    assert types["conv1"].scale == 0.5 / types["conv1"].dtype.hi
    before = (path / "model.onnx").read_bytes()
    table["ranges"]["cnv1"] = [0.0, 0.25]
    file.write_text(json.dumps(table))
    status, _, err = cli("compile", path)
    assert status == 2
    assert "ranges.json has a range for 'cnv1', which this network does not have; did you mean conv1" in err
    assert (path / "model.onnx").read_bytes() == before


def test_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    exec(example, {})
    first, second = capsys.readouterr().out.splitlines()
    assert "u4" in first
    assert second == "u8"
