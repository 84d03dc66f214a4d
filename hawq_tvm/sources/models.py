"""Networks as users name them: a zoo name, ``torchvision:NAME``, ``timm:NAME`` or ``file.py:factory``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import pickle
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hawq_tvm.core.errors import ModelError, did_you_mean, first_line
from hawq_tvm.settings import check_seed
from hawq_tvm.sources.factory import call_factory
from hawq_tvm.sources.names import (
    OTHER_ZOOS,
    PATH_SOURCES,
    RANDOM_WEIGHTS,
    check_checkpoint_path,
    check_network_name,
    file_of,
    path_of,
    shown,
)
from hawq_tvm.sources.zoo import ZOO

_PARALLEL = "module."  # what DataParallel puts before every key
_WANTED = "weights are dense tensors of real numbers: convert it, and save the state dict again"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network with its weights.

    Attributes:
        module: the network.
        name: short, for titles and file names.
        weights: what its weights are, for the reader and for a run's identity: a checkpoint by its full path.
        input_shape: the sample shape that it was made for, where that is known.
        fingerprint: sha256 over its source, structure and weights.
        versions: of torchvision and timm, where modules of theirs are in the network; a new version may compute
            something else from the same weights.
    """

    module: nn.Module
    name: str
    weights: str
    input_shape: tuple[int, ...] | None
    fingerprint: str
    versions: Mapping[str, str] = field(default_factory=dict)


def load_model(spec: str, weights: str | None = None, *, seed: int = 0) -> LoadedModel:
    """Build a network and load its weights.

    Args:
        spec: a zoo name, ``torchvision:NAME``, ``timm:NAME`` or ``file.py:factory``.
        weights: path of a safetensors file or a state dict, ``random``, or None for the checkpoint that comes with a
            zoo network, random where there is none. Without a path a factory's network keeps the weights it was made
            with.
        seed: of random weights; PyTorch is seeded with it before a factory is called.

    Raises:
        ModelError: an unknown network, a factory that fails, a checkpoint that does not fit.
        HawqError: a seed that is no whole number from 0 to 2^63 - 1.
    """
    check_network_name(spec)
    torch.manual_seed(check_seed(seed))
    source = ""
    shape: tuple[int, ...] | None = (3, 224, 224)
    packaged: Path | None = None
    trained_on = ""
    prefix, _, rest = spec.partition(":")
    if spec in ZOO:
        entry = ZOO[spec]
        module, shape, packaged, trained_on = entry.make(), entry.input_shape, entry.weights, entry.trained_on
        name = spec
    elif prefix == "torchvision":
        module, name = _torchvision(rest), rest
    elif prefix == "timm":
        module, shape = _timm(rest)
        name = rest
    else:
        made, source = call_factory(spec, "network")
        check_module(made, f"{spec} returned")
        module, shape, name = made, None, spec.rpartition(":")[2]
    if weights is None and packaged is not None:
        load_weights(module, packaged)
        described = f"the packaged checkpoint, trained on {trained_on}"
    elif weights in (None, RANDOM_WEIGHTS):
        described = f"as the factory makes them, seed {seed}" if source else f"random, seed {seed}"
    else:
        assert weights is not None
        path = path_of(weights)
        load_weights(module, path)
        described = shown(path.resolve())
    module.eval()
    return LoadedModel(module, name, described, shape, module_fingerprint(module, source), versions_of(module))


def as_loaded(model: nn.Module | str, weights: str | None = None, *, seed: int = 0) -> LoadedModel:
    """A network by name, or a module with its weights in it.

    Raises:
        ModelError: as `load_model`; no module, or weights for one.
    """
    if isinstance(model, str):
        return load_model(model, weights, seed=seed)
    check_module(model)
    if weights is not None:
        raise ModelError("weights are for a model given by name; load them into the module instead")
    return LoadedModel(
        model, type(model).__name__.lower(), "as given", None, module_fingerprint(model), versions_of(model)
    )


def versions_of(module: nn.Module) -> dict[str, str]:
    """The versions of torchvision and timm, each where a module of the network is of a class of that package."""
    packages = {type(part).__module__.partition(".")[0] for part in module.modules()}
    return {name: importlib.metadata.version(name) for name in OTHER_ZOOS if name in packages}


def check_module(made: object, verb: str = "the model is") -> None:
    """Refuse what is not a network.

    Args:
        made: what should be one.
        verb: who gave it, for the message.

    Raises:
        ModelError: not an nn.Module; for a class, with the advice to make one.
    """
    if isinstance(made, type) and issubclass(made, nn.Module):
        raise ModelError(f"{verb} the class {made.__name__}, expected an nn.Module; call it: {made.__name__}()")
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise ModelError(f"{verb} {'an' if kind[0] in 'aeiou' else 'a'} {kind}, expected an nn.Module")


def normal_spec(spec: str) -> str:
    """A model or data name in which a path is absolute, so that ``./net.py:make`` and ``net.py:make`` are the same."""
    prefix, _, rest = spec.partition(":")
    path = file_of(spec)
    if path is not None:
        return f"{path.resolve()}:{spec.rpartition(':')[2]}"
    return f"{prefix}:{path_of(rest).resolve()}" if prefix in PATH_SOURCES and rest else spec


def module_fingerprint(module: nn.Module, source: str = "") -> str:
    """sha256 over a module's structure and state, and the text of the file it came from.

    Raises:
        ModelError: not a module, or a parameter without values.
    """
    check_module(module)
    digest = hashlib.sha256(f"{source}\0{module}".encode())
    for key, value in module.state_dict().items():
        if isinstance(value, Tensor):
            if is_lazy(value) or value.is_meta:
                raise ModelError(f"'{key}' of the model has no values yet; run the network once, or load its weights")
            if (kind := _kind_not_taken(value)) is not None:
                raise ModelError(f"'{key}' of the model is a {kind} tensor; {_WANTED}")
            digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file or a PyTorch state dict, strictly.

    A state dict inside ``{"state_dict": ...}`` or ``{"model": ...}``, and the ``module.`` prefix of DataParallel, are
    taken as they come. Pickles run no code (``weights_only``).

    Raises:
        ModelError: missing, unreadable, a tensor that is not of plain real numbers, one name with the prefix and
            without, or keys and shapes that do not fit.
    """
    check_checkpoint_path(path)
    file = shown(path)
    try:
        if path.suffix.lower() == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling errors of many kinds
        raise ModelError(f"the checkpoint {file} {_why_unreadable(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"the checkpoint {file} is not a state dict; save model.state_dict()")
    strange = next((key for key in state if not isinstance(key, str)), None)
    if strange is not None:
        raise ModelError(
            f"the checkpoint {file} has the key {strange!r} of type {type(strange).__name__}; a state dict's keys are "
            "names, save model.state_dict()"
        )
    for key, value in state.items():
        if (kind := _kind_not_taken(value)) is not None:
            raise ModelError(f"the checkpoint {file} holds '{key}', a {kind} tensor; {_WANTED}")
    _load_strictly(module, _without_prefix(state, module.state_dict().keys(), file), file)


def _kind_not_taken(value: Tensor) -> str | None:
    """What a tensor is that is no plain array of real numbers; None where it is one."""
    kinds = {
        "meta (without values)": value.is_meta,
        "quantised": value.is_quantized,
        "nested": value.is_nested,
        "sparse": value.layout != torch.strided,
        "complex": value.is_complex(),
    }
    return next((kind for kind, found in kinds.items() if found), None)


def _without_prefix(state: Mapping[str, Tensor], own: Collection[str], file: str) -> dict[str, Tensor]:
    """DataParallel's ``module.`` taken off every key that the network does not know as it is.

    Raises:
        ModelError: two keys come to one name, and which of them counts is not known.
    """
    names: dict[str, str] = {}
    for key in state:
        name = key if key in own else key.removeprefix(_PARALLEL)
        if name in names:
            raise ModelError(
                f"the checkpoint {file} has both '{names[name]}' and '{key}', which are one parameter of the network; "
                "keep the one that counts"
            )
        names[name] = key
    return {name: state[key] for name, key in names.items()}


def _why_unreadable(error: Exception) -> str:
    """Why a checkpoint is refused; PyTorch's own advice, to read it without ``weights_only``, would run its code."""
    advice = "save model.state_dict(), with torch.save or as a safetensors file"
    if "TorchScript" in str(error):
        return f"is a TorchScript archive, not a plain state dict; {advice}"
    held = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and held is not None:
        return (
            f"is not a plain state dict: it holds a {held[1]}, and objects other than tensors may run code when they "
            f"are read; {advice}"
        )
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return f"cannot be read: it is damaged, not a PyTorch file, or holds more than tensors; {advice}"
    return f"cannot be read: {first_line(error)}"


def _load_strictly(module: nn.Module, state: Mapping[str, Tensor], file: str) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    wrong = [key for key in state if key in own and state[key].shape != own[key].shape]
    problems = []
    if missing:
        problems.append(f"it lacks {_some(missing)}")
    if unknown:
        problems.append(f"it has {_some(unknown)}, which the network has not")
    if wrong:
        key = wrong[0]
        problems.append(f"'{key}' has the shape {tuple(state[key].shape)}, the network's {tuple(own[key].shape)}")
    if problems:
        raise ModelError(f"the checkpoint {file} does not fit the network: {'; '.join(problems)}")
    module.load_state_dict(dict(state), strict=False)  # all that may be missing now are batch counters


def _some(keys: list[str]) -> str:
    shown = ", ".join(f"'{key}'" for key in keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"


def _import_with_stub(name: str) -> ModuleType:
    """Import torchvision or timm; beside a CPU-only PyTorch their C++ operators are missing and are defined first."""
    try:
        if not hasattr(torch.ops.torchvision, "nms"):
            library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(library)
        return importlib.import_module(name)
    except Exception as error:  # whatever a foreign package raises on import
        raise ModelError(f"{name} cannot be imported beside torch {torch.__version__}: {first_line(error)}") from error


_KEPT: list[Any] = []  # a torch.library.Library undefines its operators when it is collected


def _torchvision(name: str) -> nn.Module:
    models = _import_with_stub("torchvision").models
    return _made(lambda: models.get_model(name, weights=None), f"torchvision:{name}", models.list_models)


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...] | None]:
    timm = _import_with_stub("timm")
    module = _made(lambda: timm.create_model(name, pretrained=False), f"timm:{name}", timm.list_models)
    shape = getattr(module, "default_cfg", {}).get("input_size")
    return module, tuple(shape) if shape else None


def _made(make: Callable[[], Any], spec: str, known: Callable[[], list[str]]) -> nn.Module:
    try:
        module: nn.Module = make()
        return module
    except Exception as error:  # whatever a foreign package raises for an unknown name
        package, _, name = spec.partition(":")
        meant = "" if name in known() else did_you_mean(spec, [f"{package}:{other}" for other in known()])
        raise ModelError(f"{spec} cannot be built: {first_line(error)}{meant}") from error
