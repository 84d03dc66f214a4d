"""A PyTorch network becomes a float graph: `torch.export`, one walk over ATen, then the folding passes.

`torch.export` functionalises, so in-place operators on kept tensors come out right, and a module that is called twice
comes out as two layers. Decompositions are held back so that convolutions, batch norms and pools stay whole.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.errors import CaptureError, UnsupportedOperator, first_line
from hawq_tvm.core.float_ir import FloatGraph
from hawq_tvm.frontend import passes
from hawq_tvm.frontend.aten import ATEN, KEEP_AXES
from hawq_tvm.frontend.translator import SYMBOLIC, Activation, Translator, Value

_OF_PYTORCH = (TypeError, KeyError, IndexError, AttributeError, RuntimeError, ValueError)
_TOLERANCE = 1e-3  # of the largest logit: folding a batch norm moves float32 results by far less


def capture(model: nn.Module, example: Tensor, *, name: str = "network") -> FloatGraph:
    """Turn a network into a float graph that computes the same function.

    Args:
        model: any module with one tensor in and one out; it is run in eval mode and left as it was.
        example: float32 [N, ...], a batch that the network accepts; the batch size stays free.
        name: what the graph is called.

    Returns:
        The float graph: batch norms folded, dropout dropped, clips and residuals fused.

    Raises:
        UnsupportedOperator: an operator has no integer form; names it, its module and what could replace it.
        CaptureError: the network cannot be exported, has several inputs or outputs, or the graph computes otherwise.
    """
    _check_float32(model, example)
    with _evaluating(model), torch.no_grad():
        graph = passes.simplify(_translate(_export(model, example), name))
        _check_finite(graph)
        try:
            expected, got = model(example), FloatModule(graph)(example)
        except _OF_PYTORCH as error:
            raise CaptureError(
                f"the network, or the graph captured from it, fails on an input of shape {tuple(example.shape)}: "
                f"{first_line(error)}; check that forward() runs in eval mode and works for any batch size"
            ) from error
    _check_same(expected, got)
    return graph


def _check_float32(model: nn.Module, example: Tensor) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype.is_floating_point and parameter.dtype != torch.float32:
            raise CaptureError(
                f"parameter '{name}' is {parameter.dtype}, and a network is captured in torch.float32; "
                "call .float() on the network"
            )
    if example.dtype != torch.float32 or not example.ndim or not example.numel():
        raise CaptureError(
            f"the example input is {example.dtype} of shape {tuple(example.shape)}; give torch.float32 samples, "
            "at least one"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.cat([example, example])[: max(2, len(example))]  # the exporter makes a batch of 1 a constant
    try:
        free = ({0: torch.export.Dim("batch", min=1)},)
        with _quiet():
            program = torch.export.export(model, (batch,), dynamic_shapes=free).run_decompositions({})
    except Exception as error:  # torch.export raises many unrelated kinds
        raise CaptureError(
            f"torch.export could not trace the network on an input of shape {tuple(example.shape)}: "
            f"{first_line(error)}; check that forward() takes one tensor of this shape, works for any batch size and "
            "does not branch on values"
        ) from error
    assert isinstance(program, torch.export.ExportedProgram)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch warns of its own deprecated internals, and logs and prints the whole graph of what it cannot trace."""
    named = logging.root.manager.loggerDict.items()
    loggers = [logger for name, logger in named if name.split(".")[0] == "torch" and isinstance(logger, logging.Logger)]
    disabled = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, state in zip(loggers, disabled, strict=True):
            logger.disabled = state


def _translate(program: torch.export.ExportedProgram, name: str) -> FloatGraph:
    """Walk the exported graph; `aten.ATEN` says what each operator becomes."""
    signature = program.graph_signature
    for buffer in signature.buffers_to_mutate.values():
        raise CaptureError(
            f"forward() changes the buffer '{buffer}', and an integer network keeps no state; leave that out in eval "
            "mode"
        )
    if signature.user_inputs_to_mutate:
        raise CaptureError("forward() writes into its input; let it work on a copy, as x = x * 2 instead of x *= 2")
    fully_qualified = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    stored: dict[str, Any] = {**program.constants, **program.state_dict}
    translator = Translator()
    env: dict[fx.Node, Value] = {}
    inputs: list[Activation] = []
    result: Any = None
    for node in program.graph.nodes:
        translator.current = node
        if node.op == "placeholder":
            if node.name in fully_qualified:
                env[node] = stored[fully_qualified[node.name]]
            else:
                batch, *sizes = node.meta["val"].shape
                inputs.append(Activation(node.name, tuple(sizes)))
                translator.batch = str(batch)
                translator.taken.add(node.name)
                env[node] = inputs[-1]
        elif node.op == "output":
            result = [env[value] if isinstance(value, fx.Node) else value for value in node.args[0]]
        else:
            translator.weight_name = _weight_name(node, fully_qualified)
            env[node] = _call(translator, node, env)
    if len(inputs) != 1:
        raise CaptureError(f"the network takes {len(inputs)} tensors; wrap it in a module that takes one")
    if len(result) != 1 or not isinstance(result[0], Activation):
        raise CaptureError(f"the network returns {len(result)} values; wrap it in a module that returns one tensor")
    return FloatGraph(name, inputs[0].name, inputs[0].shape, tuple(translator.nodes), result[0].name)


def _weight_name(node: fx.Node, fully_qualified: dict[str, str]) -> str:
    """The module path of a layer, from its weight's name: right also where a subclass calls the functional form."""
    if len(node.args) > 1 and isinstance(node.args[1], fx.Node):
        path = fully_qualified.get(node.args[1].name, "")
        if path.endswith(".weight") and ("conv" in str(node.target) or "linear" in str(node.target)):
            return path.removesuffix(".weight")
    return ""


def _call(translator: Translator, node: fx.Node, env: dict[fx.Node, Value]) -> Value:
    arguments: Any = fx.map_arg(node.args, lambda n: env[n])
    keywords: Any = fx.map_arg(node.kwargs, lambda n: env[n])
    if node.target is operator.getitem:
        if isinstance(arguments[0], tuple) and arguments[1] < len(arguments[0]):
            return arguments[0][arguments[1]]
        raise translator.refuse("only the first result of this operator is known")
    if "sym_size" in str(node.target) or not isinstance(node.target, torch._ops.OpOverload):
        return SYMBOLIC  # arithmetic on the batch size
    leaves = list(_leaves((arguments, keywords)))
    if not any(isinstance(leaf, Activation) for leaf in leaves):
        if any(leaf is SYMBOLIC for leaf in leaves):
            return SYMBOLIC
        return _fold(translator, node.target, arguments, keywords)
    if node.target is torch.ops.aten._assert_tensor_metadata.default:
        return None  # what the exporter leaves of a cast: a check without a result
    short = str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")
    handler = ATEN.get(short)
    if handler is None:
        raise translator.refuse()
    if handler not in KEEP_AXES and any(isinstance(leaf, Activation) and leaf.flat for leaf in leaves):
        raise translator.refuse("squeeze both height and width before it, or flatten")
    schema = node.target._schema.arguments
    named = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    named.update({argument.name: value for argument, value in zip(schema, arguments, strict=False)})
    named.update(keywords)
    try:
        value = handler(translator, named)
    except _OF_PYTORCH as error:
        raise _misread(translator, error) from error
    first = value[0] if isinstance(value, tuple) else value
    translator.require_result(first)
    return value


def _fold(translator: Translator, target: Any, arguments: Any, keywords: Any) -> Value:
    """An operator on constants alone becomes its result."""
    try:
        return target(*arguments, **keywords)
    except _OF_PYTORCH as error:
        raise _misread(translator, error) from error


def _misread(translator: Translator, error: Exception) -> UnsupportedOperator:
    return translator.refuse(f"it is called in a way that is not known ({first_line(error)}); write it plainly")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _check_finite(graph: FloatGraph) -> None:
    for node in graph:
        for part in ("weight", "bias"):
            array = getattr(node, part)
            if array is not None and not np.isfinite(array).all():
                raise CaptureError(
                    f"the {part} of layer '{node.name}', with what was folded into it, is NaN or infinite; check its "
                    "weights, and the variances of its batch norm"
                )


def _check_same(expected: Any, got: Tensor) -> None:
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        shape = tuple(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise CaptureError(f"the network returns {shape} and the captured graph {tuple(got.shape)}; return one tensor")
    if not torch.isfinite(expected).all():
        raise CaptureError("the network returns NaN or infinity on its example input; check its weights")
    largest = float(expected.abs().max())
    error = float((expected - got).abs().max())
    if not error <= _TOLERANCE * max(largest, 1e-6):  # true of NaN too
        raise CaptureError(
            f"the captured graph differs from the network by {error:.3g} where its largest output is {largest:.3g}; "
            "the network may draw random numbers or keep state in forward()"
        )
