"""A head that excludes padding of its vocabulary computes what a head without it does, in every path of the loss."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import shape
from torch import Tensor, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing import assert_close

from pretrain.data.collate import IGNORE
from pretrain.interop.load import build
from pretrain.kernels.softcap import Softcap
from pretrain.models.interface import hide_padding
from pretrain.objectives import loss
from pretrain.objectives.config import CausalConfig
from pretrain.parallel.process_group import end_process

TOKENS, ROWS, WIDTH, TARGETS = 37, 128, 16, 300
CAPS = {None: None, "tanh": Softcap(3.0), "sqrt": Softcap(3.0, by_tanh=False)}


def head_of(weight: Tensor, bias: Tensor | None, softcap: Softcap | None = None, n_tokens: int | None = None) -> Any:
    return SimpleNamespace(weight=weight, bias=bias, softcap=softcap, n_tokens=n_tokens)


def problem(bias: bool = True) -> tuple[list[Tensor], Tensor]:
    """Return features, a padded matrix and bias, and targets; padding has the largest logits by far."""
    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=draw) for size in ((TARGETS, WIDTH), (ROWS, WIDTH), (ROWS,))][: 2 + bias]
    values[1][TOKENS:] *= 10
    targets = torch.randint(TOKENS, (TARGETS,), generator=draw)
    targets[::3] = IGNORE
    return [value.requires_grad_() for value in values], targets


def narrow(values: list[Tensor]) -> list[Tensor]:
    return [values[0], *(value[:TOKENS] for value in values[1:])]


def with_bias(values: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    return values[0], values[1], values[2] if len(values) > 2 else None


@pytest.mark.parametrize("chunks", [True, False], ids=["chunks", "whole"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("cap", CAPS)
def test_loss_and_gradient_are_those_without_padding(
    chunks: bool, bias: bool, z_loss: float, cap: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, targets = problem(bias)
    settings, weights = loss.LossSettings(z_loss=z_loss), torch.rand(TARGETS)
    features, matrix, own_bias = with_bias(narrow(values))
    expected = loss.cross_entropy_sum(features, head_of(matrix, own_bias, CAPS[cap]), targets, weights, settings)
    gradients = torch.autograd.grad(expected, values)
    if chunks:
        monkeypatch.setattr(loss, "MAX_UNCHUNKED_LOGITS", 0)
        monkeypatch.setattr(loss, "MAX_CHUNK_LOGITS", 1)
    features, matrix, own_bias = with_bias(values)
    head = head_of(matrix, own_bias, CAPS[cap], TOKENS)
    found = loss.cross_entropy_sum(features, head, targets, weights, settings)
    assert_close(found, expected)
    for gradient, one in zip(torch.autograd.grad(found, values), gradients, strict=True):
        assert_close(gradient, one, rtol=1e-5, atol=1e-5)
    assert not gradients[1][TOKENS:].any()


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("cap", CAPS)
def test_the_loss_for_a_compiler_is_that_without_padding(z_loss: float, cap: str | None) -> None:
    values, targets = problem()
    with torch.no_grad():
        features, weight, bias = values
        terms = loss.LossTerms(z_loss, CAPS[cap], TOKENS)
        grad, of_bias, total = loss.fused_grad_logits(features @ weight.T, bias, targets, terms)
        expected, expected_bias, expected_total = loss.fused_grad_logits(
            features @ weight[:TOKENS].T, bias[:TOKENS], targets, loss.LossTerms(z_loss, CAPS[cap])
        )
    assert_close(total, expected_total)
    assert_close(grad[:, :TOKENS], expected)
    assert of_bias is not None
    assert expected_bias is not None
    assert_close(of_bias[:TOKENS], expected_bias)
    assert not grad[:, TOKENS:].any()
    assert not of_bias[TOKENS:].any()


def test_scores_and_predictions_are_those_without_padding() -> None:
    values, targets = problem()
    losses, predictions = loss.token_losses(values[0], head_of(*values[1:], n_tokens=TOKENS), targets)
    expected, best = loss.token_losses(values[0], head_of(*(value[:TOKENS] for value in values[1:])), targets)
    assert_close(losses, expected)
    assert torch.equal(predictions, best)
    with_padding = loss.token_losses(values[0], head_of(*values[1:]), targets)[1]
    assert (with_padding >= TOKENS).any()  # else nothing was excluded above


def _work(rank: int, store: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh, (values, targets) = init_device_mesh("cpu", (2,)), problem()
    features = values[0].detach().requires_grad_()
    matrix, bias = (distribute_tensor(value.detach(), mesh, [Shard(0)]).requires_grad_() for value in values[1:])
    head = head_of(matrix, bias, n_tokens=TOKENS)
    total = loss.cross_entropy_sum(features, head, targets)
    total.backward()
    with torch.no_grad():
        losses, predictions = loss.token_losses(features, head, targets)
    gradients = [features.grad, *(each.grad.full_tensor() for each in (matrix, bias) if each.grad is not None)]
    if rank == 0:
        answers.put([each.detach().numpy() for each in (total, losses, predictions, *gradients) if each is not None])
    end_process()


@pytest.mark.long
def test_a_shard_of_nothing_but_padding_adds_nothing(tmp_path: Path) -> None:
    """Of two processes that share the vocabulary, the second holds rows from 64 on, and there are 37 tokens."""
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    processes: Any = multiprocessing.spawn(_work, (tmp_path / "store", answers), nprocs=2, join=False)  # type: ignore[attr-defined]
    found = [torch.from_numpy(each) for each in answers.get()]
    processes.join()
    values, targets = problem()
    features, matrix, bias = with_bias(narrow(values))
    head = head_of(matrix, bias)
    expected = loss.cross_entropy_sum(features, head, targets)
    gradients = torch.autograd.grad(expected, values)
    for one, other in zip(found, (expected, *loss.token_losses(features, head, targets), *gradients), strict=True):
        assert_close(one, other.detach(), rtol=1e-5, atol=1e-5)


def test_a_model_knows_its_tokens_if_the_settings_ask_for_it() -> None:
    tokenizer: Any = SimpleNamespace(vocab_size=TOKENS)
    for excludes in (False, True):
        config = shape("gpt", vocab_multiple=64, exclude_vocab_padding=excludes)
        with torch.device("meta"):
            model = build(config, CausalConfig(), tokenizer)
        assert (model.vocab_size, model.head.n_tokens) == (64, TOKENS if excludes else None)
    head = build(shape("gpt", vocab_multiple=64, logit_softcap=5.0), CausalConfig(), tokenizer).head
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(2, head.weight.shape[1])
    before = head(hidden)
    head.n_tokens = TOKENS
    assert torch.equal(head(hidden), hide_padding(before.clone(), TOKENS))
    assert (head(hidden)[:, TOKENS:] == -torch.inf).all()
