"""What a run was made from: its identity, and the settings and samples that its manifest keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from hawq_tvm.core.errors import HawqError, RunError
from hawq_tvm.core.strict_json import JsonReader
from hawq_tvm.runs.rundir import Run
from hawq_tvm.settings import Settings
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.models import LoadedModel, normal_spec
from hawq_tvm.sources.names import file_of
from hawq_tvm.sources.options import DataOptions, Preprocessing
from hawq_tvm.sources.samples import Data

PYTHON_OBJECT = "python object"
"""How samples are named that were given as Python objects, and are not found again."""


def run_identity(spec: str, model: LoadedModel, data: str) -> dict[str, Any]:
    """What a run directory belongs to: another model, checkpoint or data needs another directory."""
    return {"model": normal_spec(spec), "weights": model.weights, "data": normal_spec(data)}


def describe_run(run: Run, settings: Settings, spec: str, options: DataOptions, data: Data) -> None:
    """Keep in the manifest what was asked for and how the samples are found again, from any directory."""
    run.manifest["settings"] = settings.to_json()
    how = data.preprocessing
    run.manifest["data"] = {
        "spec": normal_spec(spec),
        "options": asdict(replace(options, input_shape=data.sample_shape)),
        "settings": dict(data.settings),
        "note": data.note,
        "preprocessing": None if how is None else {**asdict(how), "mean": list(how.mean), "std": list(how.std)},
        "key": data.key,
    }
    run.save_manifest()


def stored_settings(run: Run) -> Settings:
    """What a run was asked to do.

    Raises:
        RunError: the manifest does not say.
    """
    return Settings.from_json(run.manifest.get("settings"))


def stored_options(run: Run) -> DataOptions:
    """How a run's samples were chosen and prepared.

    Raises:
        RunError: the manifest does not say.
    """
    reader = JsonReader("the manifest's data is damaged", RunError, "start the run again elsewhere")
    stored: Any = _stored(run).get("options")
    options: DataOptions = reader.take(stored, DataOptions, where="options", signed=("mean",))
    missing = [item.name for item in fields(DataOptions) if item.name not in stored]
    if missing:
        raise reader.fault(f"options.{missing[0]} is missing")
    return options


def stored_preprocessing(run: Run) -> Preprocessing | None:
    """How an image becomes a sample of the run; None where its samples do not tell, or the run is an old one.

    Raises:
        RunError: the manifest is damaged.
    """
    stored = _stored(run).get("preprocessing")
    if stored is None:
        return None
    reader = JsonReader("the manifest's data is damaged", RunError, "start the run again elsewhere")
    found: Preprocessing = reader.take(stored, Preprocessing, where="preprocessing", signed=("mean",))
    return found


def withheld_code(run: Run, *, trust_code: bool) -> str | None:
    """The Python file that makes a run's samples and may not be executed; None where nothing stands in the way."""
    spec = _spec(run)
    path = None if spec is None or trust_code else file_of(spec)
    return None if path is None else str(path)


def stored_data(run: Run, *, trust_code: bool = False) -> Data | None:
    """The samples that a run was made with.

    A run directory is data, and may come from anybody: the Python file that its manifest names is executed only where
    the user says that it may be.

    Args:
        run: the run.
        trust_code: whether that file may be executed.

    Returns:
        None where the samples were Python objects, come from code that is not trusted, or are not there any more.

    Raises:
        RunError: the manifest does not say how they are found.
    """
    spec = _spec(run)
    if spec in (None, PYTHON_OBJECT) or withheld_code(run, trust_code=trust_code) is not None:
        return None
    options = stored_options(run)
    try:
        return load_data(spec, options)
    except HawqError:
        return None


def _spec(run: Run) -> str | None:
    """How the samples were named; a text, so that what is looked at here is what is loaded."""
    spec = _stored(run).get("spec")
    if spec is None or isinstance(spec, str):
        return spec
    raise RunError(f"the manifest's data is damaged (spec is a {type(spec).__name__}); start the run again elsewhere")


def _stored(run: Run) -> Mapping[str, Any]:
    stored = run.manifest.get("data", {})
    if not isinstance(stored, dict):
        raise RunError("the manifest's data is damaged (it is no table); start the run again elsewhere")
    return stored
