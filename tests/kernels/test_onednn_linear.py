"""oneDNN matmuls swapped into a model equal torch's up to rounding, forward and backward."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from families import random_model, shape
from torch import Tensor, nn

from pretrain.kernels import onednn_linear
from pretrain.kernels.matmul import Matmul
from pretrain.kernels.onednn_linear import OneDnnLinear, OneDnnMatmul, install, linear

Shapes = list[tuple[int, ...]]


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Shapes:
    """Return the shapes that oneDNN multiplies from now on, small ones too."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    asked: Shapes = []
    multiply = onednn_linear.by_onednn

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        asked.append((*x.shape, len(weight)))
        return multiply(x, weight, bias)

    monkeypatch.setattr(onednn_linear, "amd_with_avx512", lambda: True)
    monkeypatch.setattr(onednn_linear, "MIN_MULTIPLICATIONS", 1000)
    monkeypatch.setattr(onednn_linear, "by_onednn", noted)
    return asked


def installed(layer: nn.Linear) -> nn.Linear:
    model = nn.Sequential(layer)
    install(model)
    assert type(model[0]) is OneDnnLinear
    return layer


@pytest.mark.parametrize("pays", [True, False])
def test_only_the_matmuls_of_a_model_are_swapped(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_linear, "amd_with_avx512", lambda: pays)
    model = random_model(shape("bert"), 50, causal=False)
    before = dict(model.named_parameters())
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    install(model)
    install(model)
    assert {type(layer) for layer in layers} == {OneDnnLinear if pays else nn.Linear}
    assert type(model.head.matmul) is (OneDnnMatmul if pays else Matmul)
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == list(random_model(shape("bert"), 50, causal=False).state_dict())


@pytest.mark.parametrize("shape", [(30, 8), (2, 15, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_torch(onednn: Shapes, shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    layer = installed(nn.Linear(8, 12, bias=biased))
    x = torch.randn(shape, requires_grad=True)
    pull = torch.randn(*shape[:-1], 12)
    (layer(x) * pull).sum().backward()
    found = [x.grad, *(each.grad for each in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    expected = F.linear(x, layer.weight, layer.bias)
    (expected * pull).sum().backward()
    torch.testing.assert_close(layer(x), expected)
    for ours, theirs in zip(found, [x.grad, *(each.grad for each in layer.parameters())], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(onednn) == 4  # forward, twice back, forward


@pytest.mark.parametrize("kind", [Matmul, OneDnnMatmul])
def test_a_gradient_is_added_in_float32(onednn: Shapes, kind: type[Matmul]) -> None:
    torch.manual_seed(0)
    grad, x, total = torch.randn(40, 8), torch.randn(40, 12), torch.randn(8, 12)
    expected = total + grad.T @ x
    kind().add_gradient(total, grad, x)
    torch.testing.assert_close(total, expected)
    kind().add_gradient(total, grad.bfloat16(), x.bfloat16())
    torch.testing.assert_close(total, expected + (grad.bfloat16().T @ x.bfloat16()).float())
    assert len(onednn) == (kind is OneDnnMatmul)


@pytest.mark.parametrize("shape", [(40, 100, 6), (40, 97, 3), (40, 6, 100), (40, 100, 30), (2, 600, 3)])
def test_gradients_in_parts_are_those_of_torch(
    onednn: Shapes, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "MAX_CACHED", 50)
    torch.manual_seed(0)
    count, rows, columns = shape
    x, weight = torch.randn(count, columns), torch.randn(rows, columns, requires_grad=True)
    pull, total = torch.randn(count, rows), torch.ones(rows, columns)
    (linear(x, weight) * pull).sum().backward()
    assert weight.grad is not None
    assert weight.grad.is_contiguous()
    torch.testing.assert_close(weight.grad, pull.T @ x)
    OneDnnMatmul().add_gradient(total, pull, x)
    torch.testing.assert_close(total, 1 + pull.T @ x)
    assert len(onednn) > -(-rows * columns // 50) / 2  # half of the parts


def test_a_part_of_a_matrix_is_made_dense_before_it_is_multiplied(
    onednn: Shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    multiply = onednn_linear._opaque

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        given.append(weight)
        return multiply(x, weight, bias)

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(onednn_linear, "_opaque", noted)
    x, matrix = torch.randn(40, 8), torch.randn(12, 20)
    with torch.no_grad():
        for weight in matrix[:, :8], matrix[:, 3:11], matrix[:8].t():
            torch.testing.assert_close(linear(x, weight), x @ weight.t())
    assert all(each.is_contiguous() or each.t().is_contiguous() for each in given)
    assert len(given) == len(onednn) == 3


def test_small_and_other_than_float32_matmuls_are_left_to_torch(onednn: Shapes) -> None:
    x, weight = torch.randn(40, 8), torch.randn(12, 8)
    with torch.no_grad():
        linear(x[:2], weight)
        linear(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype is torch.bfloat16
        linear(x.to("meta"), weight.to("meta"))
        assert not onednn
        torch.testing.assert_close(linear(x, weight), x @ weight.T)
    assert onednn == [(40, 8, 12)]


def test_only_gradients_that_are_asked_for_are_computed(onednn: Shapes) -> None:
    x, layer = torch.randn(40, 8), installed(nn.Linear(8, 12))
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert onednn == [(40, 8, 12), (12, 40, 8)]


@pytest.mark.parametrize("width", [8, 800], ids=["small", "large"])
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_a_layer_is_one_graph_to_the_compiler(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(onednn_linear, "amd_with_avx512", lambda: True)
    monkeypatch.setattr(onednn_linear, "MIN_MULTIPLICATIONS", 1000)
    torch.manual_seed(0)
    x, layer = torch.randn(40, width, requires_grad=True), installed(nn.Linear(width, 200))
    layer(x).square().sum().backward()
    expected = [x.grad, layer.weight.grad, layer.bias.grad]
    x.grad = None
    layer.zero_grad()
    layer.compile(dynamic=False, fullgraph=True)
    layer(x).square().sum().backward()
    for ours, theirs in zip([x.grad, layer.weight.grad, layer.bias.grad], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)
