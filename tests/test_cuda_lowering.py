"""Functions of a GPU, taken apart: what the host calls, each kernel's text, and how it is launched."""

from __future__ import annotations

import os

import pytest
from tvm import tirx

from hawq_tvm.backends.tvm.cuda.lowering import Launch, lower_for_gpu
from hawq_tvm.core.errors import CompileError

from .gpu_functions import MACHINE, add_one, module, of_any_length, reverse


def test_every_kernel_is_a_text_of_its_own() -> None:
    host, kernels = lower_for_gpu(module(one=add_one, two=reverse), MACHINE.tvm_target)
    assert {variable.name_hint for variable in host.functions} == {"one", "two"}
    assert {kernel.name: kernel.function for kernel in kernels} == {"one_kernel": "one", "two_kernel": "two"}
    for kernel in kernels:
        assert kernel.text.count('extern "C" __global__') == 2, "declared, and defined"
        assert f"{kernel.name}(" in kernel.text
        assert kernel.text == kernel.generated, "no vectors of bytes here"


def test_launches_are_read_from_the_host() -> None:
    _, kernels = lower_for_gpu(module(one=add_one, two=reverse), MACHINE.tvm_target)
    launches = {kernel.name: kernel.launch for kernel in kernels}
    assert launches["one_kernel"] == Launch((4, 1, 1), (256, 1, 1), 0)
    assert launches["two_kernel"] == Launch((3, 2, 1), (128, 1, 1), 0)
    assert launches["two_kernel"].threads == 128


def test_a_frame_has_the_signature_and_no_body() -> None:
    _, (kernel,) = lower_for_gpu(module(one=add_one), MACHINE.tvm_target)
    ((variable, frame),) = kernel.frame.functions.items()
    assert variable.name_hint == "one_kernel"
    assert isinstance(frame.body, tirx.Evaluate)
    assert [str(parameter.name) for parameter in frame.params] == ["x_ptr", "y_ptr"]
    assert [str(tag) for tag in frame.attrs["tirx.kernel_launch_params"]] == ["blockIdx.x", "threadIdx.x"]


def test_a_grid_that_is_no_constant_is_refused() -> None:
    with pytest.raises(CompileError, match=r"^kernel 'any_kernel': its blockIdx.x is n, which is no constant$"):
        lower_for_gpu(module(any=of_any_length), MACHINE.tvm_target)


@pytest.mark.parametrize("before", [None, "0"])
def test_the_environment_stays_as_it_was(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TVM_COMPILE_FORCE_FALLBACK"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    lower_for_gpu(module(one=add_one), MACHINE.tvm_target)
    assert os.environ.get(name) == before


def test_a_module_without_functions_has_no_kernels() -> None:
    host, kernels = lower_for_gpu(module(), MACHINE.tvm_target)
    assert (len(host.functions), kernels) == (0, [])
