"""ONNX Runtime as an executor: every value of the file, not only its output."""

from __future__ import annotations

import onnxruntime
from onnx import ModelProto

from hawq_tvm.core.errors import ModelFileError
from hawq_tvm.core.ir import Array


def make_session(
    model: ModelProto, *, threads: int | None = None, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Args:
        model: any ONNX model.
        threads: worker threads; None lets ONNX Runtime choose.
        optimize: whether its graph optimisations run.

    Raises:
        ModelFileError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        raise ModelFileError(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from error


class OnnxRuntimeModule:
    """An ONNX model whose inner values are outputs too."""

    def __init__(self, model: ModelProto, *, threads: int | None = None, optimize: bool = True) -> None:
        tapped = ModelProto()
        tapped.CopyFrom(model)
        inner = list(tapped.graph.value_info)
        tapped.graph.output.extend(inner)
        del tapped.graph.value_info[:]
        self._session = make_session(tapped, threads=threads, optimize=optimize)
        self._input = model.graph.input[0].name
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, x: Array) -> dict[str, Array]:
        """Every value's integers in its carrier dtype, by name, the input's too.

        Args:
            x: [N, ...] in the carrier dtype of the model's input.
        """
        results = self._session.run(self._outputs, {self._input: x})
        return {self._input: x, **dict(zip(self._outputs, results, strict=True))}
