"""Products with a weight: oneDNN's are torch's but for rounding, forward and back."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.kernels import onednn_linear
from pretrain.kernels.onednn_linear import Linear, add_product, product

Shapes = list[tuple[int, ...]] | None


@pytest.fixture(params=[True, False])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Shapes:
    """Return the shapes that oneDNN multiplies from now on; none where this is said to be another processor."""
    asked: list[tuple[int, ...]] = []
    multiply = onednn_linear.by_onednn

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        asked.append((*x.shape, len(weight)))
        return multiply(x, weight, bias)

    monkeypatch.setattr(onednn_linear, "amd_with_avx512", lambda: request.param)
    monkeypatch.setattr(onednn_linear, "FEW", 1000)
    monkeypatch.setattr(onednn_linear, "by_onednn", noted)
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    return asked if request.param else None


@pytest.mark.parametrize("shape", [(30, 8), (2, 15, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_torch(onednn: Shapes, shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(8, 12, bias=biased)
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
    assert onednn is None or len(onednn) == 4  # forward, twice back, forward


def test_a_sum_of_products_is_that_of_torch(onednn: Shapes) -> None:
    torch.manual_seed(0)
    rows, others, total = torch.randn(40, 8), torch.randn(40, 12), torch.randn(8, 12)
    expected = total + rows.T @ others
    add_product(total, rows, others)
    torch.testing.assert_close(total, expected)
    add_product(total, rows.bfloat16(), others.bfloat16())
    torch.testing.assert_close(total, expected + (rows.bfloat16().T @ others.bfloat16()).float())
    assert onednn is None or len(onednn) == 1


@pytest.mark.parametrize("shape", [(40, 100, 6), (40, 97, 3), (40, 6, 100), (40, 100, 30), (2, 600, 3)])
def test_gradients_in_pieces_are_those_of_torch(
    onednn: Shapes, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "PIECE", 50)
    torch.manual_seed(0)
    count, rows, columns = shape
    x, weight = torch.randn(count, columns), torch.randn(rows, columns, requires_grad=True)
    pull, total = torch.randn(count, rows), torch.ones(rows, columns)
    (product(x, weight) * pull).sum().backward()
    assert weight.grad is not None
    assert weight.grad.is_contiguous()
    torch.testing.assert_close(weight.grad, pull.T @ x)
    add_product(total, pull, x)
    torch.testing.assert_close(total, 1 + pull.T @ x)
    of_total = -(-rows * columns // 50)  # pieces
    assert onednn is None or len(onednn) > of_total / 2


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
            torch.testing.assert_close(product(x, weight), x @ weight.t())
    assert all(each.is_contiguous() or each.t().is_contiguous() for each in given)
    assert len(given) == (0 if onednn is None else 3)


def test_what_is_small_or_no_float32_is_left_to_torch(onednn: Shapes) -> None:
    x, weight = torch.randn(40, 8), torch.randn(12, 8)
    with torch.no_grad():
        product(x[:2], weight)
        product(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert product(x, weight).dtype is torch.bfloat16
        product(x.to("meta"), weight.to("meta"))
        assert not onednn
        torch.testing.assert_close(product(x, weight), x @ weight.T)
    assert onednn is None or onednn == [(40, 8, 12)]


def test_only_gradients_that_are_asked_for_are_computed(onednn: Shapes) -> None:
    x, layer = torch.randn(40, 8), Linear(8, 12)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert onednn is None or onednn == [(40, 8, 12), (12, 40, 8)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_compiled_code_multiplies_alike(onednn: Shapes) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(40, 8, requires_grad=True), Linear(8, 12)
    layer(x).square().sum().backward()
    expected = [x.grad, layer.weight.grad, layer.bias.grad]
    x.grad = None
    layer.zero_grad()
    layer.compile(dynamic=False)
    layer(x).square().sum().backward()
    for ours, theirs in zip([x.grad, layer.weight.grad, layer.bias.grad], expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
@pytest.mark.parametrize("width", [8, 800], ids=["small", "large"])
def test_a_layer_is_one_graph_to_the_compiler(width: int) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(40, width, requires_grad=True), Linear(width, 200)
    layer(x).square().sum().backward()
    expected, x.grad = x.grad, None
    layer.compile(dynamic=False, fullgraph=True)
    layer(x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-3)


def test_the_processor_is_looked_up() -> None:
    if onednn_linear.amd_with_avx512():
        assert torch.backends.cpu.get_cpu_capability() == "AVX512"
