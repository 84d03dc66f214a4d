from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hawq_tvm.backends.onnx.float_onnx import to_float_onnx
from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.core.errors import CaptureError, UnsupportedOperator
from hawq_tvm.core.float_ir import Clip, FloatGraph, FloatNode
from hawq_tvm.frontend.capture import capture

from . import networks
from .builders import captured, samples


def shape_of(graph: FloatGraph) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(node.name, node.kind, node.inputs) for node in graph]


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_computes_the_network_at_any_batch(name: str, batch: int) -> None:
    x = samples(batch, seed=batch)
    with torch.no_grad():
        expected = networks.make(name)(x)
        got = FloatModule(captured(name))(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_layers_are_named_by_module_and_sums_are_fused() -> None:
    assert shape_of(captured("Residual")) == [
        ("stem", "conv2d", ("x",)),
        ("pool", "max_pool2d", ("stem",)),
        ("conv1", "conv2d", ("pool",)),
        ("conv2", "conv2d", ("conv1",)),
        ("project", "conv2d", ("pool", "conv2")),
        ("gap", "global_avg_pool2d", ("project",)),
        ("flatten", "flatten", ("gap",)),
        ("fc", "linear", ("flatten",)),
    ]
    table = captured("Residual").by_name
    assert table["stem"].clip == table["project"].clip == Clip(0.0, np.inf)
    assert table["conv2"].clip is None
    assert captured("Residual").tied_groups() == (("conv1", "project"),)


def test_a_module_called_twice_is_two_layers() -> None:
    graph = captured("Shared")
    assert [node.name for node in graph.layers] == ["conv", "conv#2", "late", "fc"]
    first, second = graph.by_name["conv"], graph.by_name["conv#2"]
    assert np.array_equal(first.weight, second.weight)
    assert graph.by_name["late"].groups == 3, "a batch norm that cannot fold is a depthwise convolution"


def test_in_place_operators_on_kept_tensors_come_out_right() -> None:
    graph = captured("Alias")
    bias = networks.make("Alias").state_dict()["conv.bias"].numpy()
    assert graph.by_name["conv"].bias == pytest.approx(bias + 1.0), (
        "y += 1 folds into the bias, for the kept tensor too"
    )


def test_pads_fold_and_clips_keep_their_bounds() -> None:
    assert captured("Concat").by_name["stem"].window.pads == (0, 0, 1, 1)
    assert captured("Concat").by_name["pool"].window.pads == (0, 0, 1, 1), "ceil_mode becomes padding"
    mobile = captured("Mobile").by_name
    assert mobile["stem"].clip == Clip(0.0, 6.0)
    assert mobile["grouped"].clip == Clip(-1.5, 1.5)
    assert mobile["project"].inputs == ("depthwise", "stem")


def test_average_pools_count_as_pytorch_does() -> None:
    counts = captured("Pools").by_name["inner"].counts
    assert counts[0, 0] == 4
    assert counts[0, 1] == 6
    assert counts[1, 1] == 9


def test_the_network_is_left_as_it_was() -> None:
    network = networks.make("Residual")
    network.train()
    network.bn.eval()
    before = copy.deepcopy(network.state_dict())
    capture(network, samples())
    assert network.training
    assert network.conv1.training
    assert not network.bn.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class Lambda(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x))


class Nested(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 1), layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@pytest.mark.parametrize(
    ("layer", "operator", "hint"),
    [
        (nn.SiLU(), "aten.silu", "nn.ReLU"),
        (nn.Sigmoid(), "aten.sigmoid", "nn.ReLU"),
        (nn.PReLU(), "aten.prelu", "nn.ReLU"),
        (nn.Softmax(1), "aten.softmax", "return the logits"),
        (nn.GroupNorm(2, 4), "aten.group_norm", "nn.BatchNorm2d"),
        (nn.Upsample(scale_factor=2), "aten.upsample_nearest2d", "rewrite it"),
        (nn.ReflectionPad2d(1), "aten.pad", "zero pad"),
        (nn.AdaptiveAvgPool2d(5), "aten.adaptive_avg_pool2d", "pool to a divisor"),
        (nn.AvgPool2d(2, divisor_override=-3), "aten.avg_pool2d", "a positive number"),
    ],
)
def test_what_has_no_integer_form_is_refused_by_name(layer: nn.Module, operator: str, hint: str) -> None:
    with pytest.raises(UnsupportedOperator, match=hint) as caught:
        capture(Nested(layer), samples())
    assert caught.value.operator == operator
    assert caught.value.module == "block.1"
    assert "'block.1'" in str(caught.value)


_UP = "no integer form; replace a transposed convolution"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: x * x.mean((2, 3), keepdim=True), "squeeze-and-excitation"),
        (lambda x: x - F.relu(x), "sign in the weights"),
        (lambda x: torch.cat([x, x], 2), "dim=1"),
        (lambda x: x.mean(1), "height and width"),
        (lambda x: x.reshape(x.shape[0], 2, -1), "only flattening"),
        (lambda x: F.linear(x.reshape(-1, 9), torch.ones(3, 9)), "keep the batch"),
        (lambda x: x.reshape(x.shape[0] * 2, -1), "keep the batch"),
        (lambda x: x.flatten(0, 1), "keep the batch"),
        (lambda x: x.unsqueeze(0), "keep the batch"),
        (lambda x: F.linear(x.mean((2, 3), keepdim=True).squeeze(-1), torch.ones(3, 1)), "squeeze both"),
        (lambda x: F.relu(x.mean((2, 3), keepdim=True).squeeze(-1)), "squeeze both"),
        (lambda x: F.linear(x.flatten(1), torch.ones(576)), r"constant weights \[out, in\]"),
        (lambda x: x.to(torch.float64), "'aten._to_copy'.*result is torch.float64; compute in torch.float32"),
        (lambda x: x.half().float(), "result is torch.float16"),
        (lambda x: x.mean((2, 3), dtype=torch.float64), "'aten.mean'.*result is torch.float64"),
        (lambda x: torch.convolution(x, torch.ones(4, 4, 1, 1), None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1), _UP),
        (lambda x: F.conv_transpose2d(x, torch.ones(4, 4, 2, 2)), _UP),
        (lambda x: x - torch.tensor([True, False, True, True]).view(4, 1, 1), "bool tensor is not supported"),
        (lambda x: x + torch.ones(12), "along channels alone"),
        (lambda x: F.pad(x, (1, 1, 1, 1)), "zero pad"),
        (lambda x: F.max_pool2d(F.pad(F.relu(x), (3, 3, 3, 3)), 2), "zero pad"),
        (lambda x: F.max_pool2d(F.pad(F.relu(x), (0, 0, 2, 0)), 2), "zero pad"),
        (lambda x: F.max_pool2d(F.pad(F.relu(F.max_pool2d(x, 6)), (1, 1, 1, 1)), 2, 1, dilation=3), "zero pad"),
        (lambda x: F.max_pool2d(F.pad(-F.relu(x), (1, 1, 1, 1)), 2), "zero pad"),
        (lambda x: F.max_pool2d(F.pad(F.relu(x) - 0.1, (1, 1, 1, 1)), 2), "zero pad"),
        (lambda x: F.max_pool2d(F.pad(F.relu(x).clamp(max=-0.1), (1, 1, 1, 1)), 2), "zero pad"),
        (lambda x: F.max_pool2d(F.pad(x.clamp(-2, -1), (1, 1, 1, 1)), 2), "zero pad"),
        (lambda x: F.max_pool2d(x, 2, 5, ceil_mode=True, dilation=5), "its padding reaches its kernel"),
        (lambda x: (x, x), "returns 2 values"),
        (lambda x: F.relu(x) if x.sum() > 0 else x, "torch.export could not trace"),
        (lambda x: x[:, :, 1::2, ::2], "every k-th row and column from the first one on"),
        (lambda x: x[:, :, :8], "every k-th row and column"),
        (lambda x: x[:, :2], "every k-th row and column"),
        (lambda x: x[:, :2].mean((2, 3))[:, ::2], "every k-th row and column"),
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), "or of channels"),
        (lambda x: F.pad(F.pad(x, (1, 1, 0, 0)), (0, 0, 0, 0, 0, 4)), "zero pad"),
        (lambda x: torch.cat([x, x.new_zeros(x.shape[0], 2, 12, 12)], 1), "zeros_like"),
        (lambda x: x[:1], "torch.export could not trace|no integer form"),
        (lambda x: torch.relu(x) / 0.0, "NaN or infinite"),
    ],
)
def test_other_things_are_refused_with_a_reason(body: object, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Lambda(body), samples())


class Constant(nn.Module):
    """A batch norm without variance or epsilon, whose result hides in a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4, eps=0.0)
        nn.init.zeros_(self.bn.running_var)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardtanh(self.bn(self.conv(x)))


def test_weights_that_fold_to_infinity_are_refused() -> None:
    with pytest.raises(CaptureError, match="the weight of layer 'conv', with what was folded into it, is NaN or inf"):
        capture(Constant(), samples())


def test_a_graph_that_computes_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FloatModule, "forward", lambda self, x: torch.full((len(x), 4, 12, 12), float("nan")))
    with pytest.raises(CaptureError, match="differs from the network by nan"):
        capture(nn.Conv2d(3, 4, 1), samples())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_another_type_are_refused_by_their_parameter(dtype: torch.dtype) -> None:
    with pytest.raises(CaptureError, match=rf"parameter '0.weight' is {dtype}.*call \.float\(\)"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 1)).to(dtype), samples().to(dtype))
    with pytest.raises(CaptureError, match=f"the example input is {dtype}"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 1)), samples().to(dtype))


@pytest.mark.parametrize("example", [torch.zeros(0, 3, 12, 12), torch.tensor(1.0)])
def test_an_example_without_a_sample_is_refused(example: Tensor) -> None:
    with pytest.raises(CaptureError, match="at least one"):
        capture(nn.Conv2d(3, 4, 1), example)


def test_a_refusal_prints_nothing_and_leaves_the_loggers(capfd: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("torch")]
    before = [logger.disabled for logger in loggers]
    with pytest.raises(CaptureError, match="branch on values"):
        capture(Lambda(lambda x: F.relu(x) if x.sum() > 0 else x), samples())
    assert capfd.readouterr() == ("", "")
    assert [logger.disabled for logger in loggers] == before


def test_a_network_that_draws_random_numbers_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"differs from the network|no integer form"):
        capture(Lambda(lambda x: F.dropout(x, 0.5, training=True)), samples())


def test_a_network_that_keeps_state_or_writes_into_its_input_is_refused() -> None:
    class Counting(Nested):
        def __init__(self) -> None:
            super().__init__(nn.ReLU())
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    class Writing(Nested):
        def forward(self, x: Tensor) -> Tensor:
            x *= 2
            return super().forward(x)

    with pytest.raises(CaptureError, match="changes the buffer 'calls'"):
        capture(Counting(), samples())
    with pytest.raises(CaptureError, match="writes into its input"):
        capture(Writing(nn.ReLU()), samples())


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(CaptureError, match="nothing to quantise"):
        capture(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), samples())


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(CaptureError, match="takes one tensor"):
        capture(Two(), samples())


@pytest.mark.parametrize(
    "body",
    [
        lambda x: (x - torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1)) / 2.0,
        lambda x: 1.0 - x,
        lambda x: -F.relu(x),
        lambda x: torch.clamp(F.relu(x), max=0.5),
        lambda x: x.clamp(min=-0.3).clamp_max(0.2),
        lambda x: F.max_pool2d(F.pad(F.relu(x), (1, 0, 0, 1)), 2),
        lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
        lambda x: F.adaptive_avg_pool2d(x, 12),
        lambda x: torch.add(x, F.relu(x)),
        lambda x: torch.add(x, 1.0, alpha=2),
        lambda x: x + x,
        lambda x: x.mean((-1, -2), keepdim=True).squeeze(-1).squeeze(-1),
        lambda x: x.contiguous().clone().view(x.size(0), -1),
        lambda x: F.max_pool2d(x, 3, stride=2, padding=1, dilation=2, ceil_mode=True),
        lambda x: F.max_pool2d(F.pad(F.relu6(x) * 2.0 + 0.5, (1, 1, 1, 1)), 3, 2),
        lambda x: F.avg_pool2d(F.pad(x, (3, 3, 3, 3)), 2),
        lambda x: F.relu6(x).clamp(8, 9),
        lambda x: F.relu6(x).clamp(-2, -1),
        lambda x: x.clamp(2, -1),
        lambda x: F.relu(x.float().to(torch.float32).to("cpu")),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.reshape(x.size(0), x.numel() // x.size(0)),
        lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).clone().flatten(1),
    ],
)
def test_more_that_users_write(body: object) -> None:
    network = Lambda(body).eval()
    x = samples(3, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(FloatModule(capture(network, samples()))(x), network(x), rtol=1e-4, atol=1e-5)


bounds = st.floats(-9, 9, allow_nan=False) | st.sampled_from([-np.inf, np.inf])


@given(first=st.tuples(bounds, bounds), second=st.tuples(bounds, bounds))
def test_one_clip_does_what_two_do(first: tuple[float, float], second: tuple[float, float]) -> None:
    x = np.linspace(-10, 10, 201)
    expected = np.minimum(np.maximum(np.minimum(np.maximum(x, first[0]), first[1]), second[0]), second[1])
    merged = Clip(*second).after(Clip(*first))
    assert np.array_equal(np.minimum(np.maximum(x, merged.lo), merged.hi), expected)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("affine", {"weight": [1.0, 0.0], "bias": [0.0, 2.0]}, True),
        ("affine", {"weight": [1.0, -1.0], "bias": [0.0, 2.0]}, False),
        ("affine", {"weight": [1.0, 1.0], "bias": [0.0, -2.0]}, False),
        ("clip", {"clip": Clip(-np.inf, 6.0)}, True),
        ("clip", {"clip": Clip(-np.inf, -0.1)}, False),
        ("clip", {"clip": Clip(0.0, -0.1)}, False),
        ("clip", {"clip": Clip(-2.0, 1.0)}, True),
    ],
)
def test_what_follows_a_relu_may_yet_be_negative(kind: str, fields: dict[str, Any], expected: bool) -> None:
    arrays = {key: np.array(value) if isinstance(value, list) else value for key, value in fields.items()}
    relu = FloatNode("relu", "clip", ("x",), (2, 3, 3), clip=Clip(0.0, np.inf))
    last = FloatNode("last", kind, ("relu",), (2, 3, 3), **arrays)
    known = FloatGraph("g", "x", (2, 3, 3), (relu, last), "last").nonnegative()
    assert known == {"x": False, "relu": True, "last": expected}


class Normalised(nn.Module):
    """Normalises its own input."""

    def __init__(self, padding: int, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=padding, groups=groups)
        self.last = nn.Conv2d(6, 2, 1)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.stem((x - self.mean) / self.std)))


@pytest.mark.parametrize(("padding", "groups"), [(0, 1), (0, 3), (1, 1)])
def test_a_normalisation_folds_forward_where_that_is_exact(padding: int, groups: int) -> None:
    network = Normalised(padding, groups).eval()
    graph = capture(network, samples())
    names = [node.name for node in graph.layers]
    if padding:
        assert names == ["affine", "stem", "last"], "zeros around the normalised input are not zeros around the input"
        assert graph.tied_groups() == (("affine", "stem"),), "what holds the first layer holds the stem"
    else:
        assert names == ["stem", "last"]
        assert graph.tied_groups() == ()
    with torch.no_grad():
        torch.testing.assert_close(FloatModule(graph)(samples(3)), network(samples(3)), rtol=1e-4, atol=1e-5)


def test_a_factor_folds_forward_through_padding_and_into_every_reader() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x / 255.0
            return F.relu(self.left(x)) + F.relu(self.right(x))

    network, x = Scaled().eval(), samples(3) * 255
    graph = capture(network, x)
    assert [node.name for node in graph.layers] == ["left", "right"]
    with torch.no_grad():
        torch.testing.assert_close(FloatModule(graph)(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_normalisation_of_a_normalisation_folds_too() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - 0.5) * 2.0
            return F.relu(self.left(x)) + F.relu(self.right(x * 3.0 + 1.0))

    network = Twice().eval()
    graph = capture(network, samples())
    assert [node.name for node in graph.layers] == ["left", "right"]
    with torch.no_grad():
        torch.testing.assert_close(FloatModule(graph)(samples(3)), network(samples(3)), rtol=1e-4, atol=1e-5)


def test_a_depthwise_layer_amid_the_network_is_no_normalisation() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 2, 1)).eval()
    assert capture(network, samples()).tied_groups() == ()


def test_a_batch_norm_on_a_vector_folds_into_the_linear_layer_after_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(576), nn.Linear(576, 3)).eval()
    nn.init.normal_(network[3].running_mean)
    graph = capture(network, samples())
    assert [node.kind for node in graph] == ["conv2d", "flatten", "linear"]
    with torch.no_grad():
        torch.testing.assert_close(FloatModule(graph)(samples(3)), network(samples(3)), rtol=1e-4, atol=1e-5)


def test_a_wide_pad_before_an_average_pool_runs_in_onnx_runtime() -> None:
    network = Lambda(lambda x: F.avg_pool2d(F.pad(x, (3, 0, 2, 1)), 2)).eval()
    session = onnxruntime.InferenceSession(
        to_float_onnx(capture(network, samples())).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        expected = network(samples(3)).numpy()
    (got,) = session.run(None, {session.get_inputs()[0].name: samples(3).numpy()})
    assert got == pytest.approx(expected, abs=1e-5)


def test_same_padding_of_even_kernels_is_one_sided() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, padding="same", dilation=1), nn.Conv2d(4, 2, 2, padding="valid"))
    graph = capture(network, samples())
    assert graph.by_name["0"].window.pads == (1, 1, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(FloatModule(graph)(samples()), network(samples()), rtol=1e-4, atol=1e-5)


def test_constants_computed_in_forward_are_folded() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    network = nn.Sequential(Standardised(3, 4, 3, padding=1), nn.ReLU()).eval()
    graph = capture(network, samples())
    assert np.abs(graph.by_name["0.conv2d"].weight.mean((1, 2, 3))).max() < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(FloatModule(graph)(samples()), network(samples()), rtol=1e-4, atol=1e-5)
