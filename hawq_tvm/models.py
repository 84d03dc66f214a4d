"""Networks as users name them: a zoo name, ``torchvision:NAME``, ``timm:NAME`` or ``file.py:factory``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hawq_tvm.errors import HawqError, ModelError
from hawq_tvm.zoo import ZOO

RANDOM_WEIGHTS = "random"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network with its weights.

    Attributes:
        module: the network.
        name: short, for titles and file names.
        weights: what its weights are, for the reader.
        input_shape: the sample shape that it was made for, where that is known.
        fingerprint: sha256 over its source, structure and weights.
    """

    module: nn.Module
    name: str
    weights: str
    input_shape: tuple[int, ...] | None
    fingerprint: str


def load_model(spec: str, weights: str | None = None, *, seed: int = 0) -> LoadedModel:
    """Build a network and load its weights.

    Args:
        spec: a zoo name, ``torchvision:NAME``, ``timm:NAME`` or ``file.py:factory``.
        weights: path of a safetensors file or a state dict, ``random``, or None for the checkpoint that comes with a
            zoo network, random where there is none.
        seed: of random weights.

    Raises:
        ModelError: an unknown network, a factory that fails, a checkpoint that does not fit.
    """
    torch.manual_seed(seed)
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
    elif ".py:" in spec:
        made, source = call_factory(spec, "network")
        if not isinstance(made, nn.Module):
            raise ModelError(f"{spec} returned a {type(made).__name__}, expected an nn.Module")
        module, shape, name = made, None, spec.rpartition(":")[2]
    else:
        raise ModelError(
            f"unknown network '{spec}'; known: {', '.join(ZOO)}, torchvision:NAME, timm:NAME, file.py:factory"
        )
    if weights is None and packaged is not None:
        load_weights(module, packaged)
        described = f"the packaged checkpoint, trained on {trained_on}"
    elif weights in (None, RANDOM_WEIGHTS):
        described = f"random, seed {seed}"
    else:
        assert weights is not None
        load_weights(module, Path(weights))
        described = weights
    module.eval()
    return LoadedModel(module, name, described, shape, module_fingerprint(module, source))


def module_fingerprint(module: nn.Module, source: str = "") -> str:
    """sha256 over a module's structure and state, and the text of the file it came from."""
    digest = hashlib.sha256(f"{source}\0{module}".encode())
    for key, value in module.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file or a PyTorch state dict, strictly.

    A state dict inside ``{"state_dict": ...}`` or ``{"model": ...}``, and the ``module.`` prefix of DataParallel, are
    taken as they come. Pickles run no code (``weights_only``).

    Raises:
        ModelError: missing, unreadable, or keys and shapes that do not fit.
    """
    if not path.is_file():
        raise ModelError(f"the checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"the checkpoint {path} cannot be read: {_first_line(error)}") from error
    except Exception as error:  # unpickling errors of many kinds
        raise ModelError(
            f"the checkpoint {path} is not a plain state dict: {_first_line(error)}; save model.state_dict()"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"the checkpoint {path} is not a state dict; save model.state_dict()")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    _load_strictly(module, state, path)


def _load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
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
        raise ModelError(f"the checkpoint {path} does not fit the network: {'; '.join(problems)}")
    module.load_state_dict(dict(state), strict=False)  # all that may be missing now are batch counters


def _some(keys: list[str]) -> str:
    shown = ", ".join(f"'{key}'" for key in keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def call_factory(spec: str, what: str) -> tuple[Any, str]:
    """Import ``file.py`` and call ``factory()`` of ``file.py:factory``.

    Args:
        spec: as the user wrote it.
        what: what the factory makes, for messages.

    Returns:
        What it returned, and the file's text.

    Raises:
        ModelError: no such file or function, or an exception inside, named with its line.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"the {what}'s file {path} does not exist")
    module_name = f"hawq_tvm_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    loader = importlib.util.spec_from_file_location(module_name, path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        loader.loader.exec_module(module)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise ModelError(f"{path} has no function '{name}'")
        return factory(), path.read_text()
    except HawqError:
        raise
    except Exception as error:
        where = _line_in(error, path)
        raise ModelError(f"{spec} failed{where}: {type(error).__name__}: {_first_line(error)}") from error
    finally:
        sys.path.pop(0)


def _line_in(error: Exception, path: Path) -> str:
    """`` at line N`` of the user's own file, where the traceback passes it."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" at line {line}"


def _import_with_stub(name: str) -> ModuleType:
    """Import torchvision or timm; beside a CPU-only PyTorch their C++ operators are missing and are defined first."""
    if importlib.util.find_spec(name) is None:
        raise ModelError(f"{name} is not installed; pip install --no-deps {name}, or give file.py:factory")
    try:
        if not hasattr(torch.ops.torchvision, "nms"):
            library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(library)
        return importlib.import_module(name)
    except Exception as error:  # whatever a foreign package raises on import
        raise ModelError(f"{name} cannot be imported beside torch {torch.__version__}: {_first_line(error)}") from error


_KEPT: list[Any] = []  # a torch.library.Library undefines its operators when it is collected


def _torchvision(name: str) -> nn.Module:
    models = _import_with_stub("torchvision").models
    return _made(lambda: models.get_model(name, weights=None), f"torchvision:{name}")


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...] | None]:
    timm = _import_with_stub("timm")
    module = _made(lambda: timm.create_model(name, pretrained=False), f"timm:{name}")
    shape = getattr(module, "default_cfg", {}).get("input_size")
    return module, tuple(shape) if shape else None


def _made(make: Callable[[], Any], spec: str) -> nn.Module:
    try:
        module: nn.Module = make()
        return module
    except Exception as error:  # whatever a foreign package raises for an unknown name
        raise ModelError(f"{spec} cannot be built: {_first_line(error)}") from error
