"""The chunked loss equals the unchunked one in value and gradient; unequal micro-batches equal one batch."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import random_model, shape
from subjects import Words
from torch import Tensor
from torch.testing import assert_close

from pretrain.data.collate import IGNORE, Rows
from pretrain.kernels.softcap import Softcap
from pretrain.objectives import loss
from pretrain.objectives.batch import Batch
from pretrain.objectives.causal import Causal
from pretrain.objectives.config import CausalConfig, MaskedConfig
from pretrain.objectives.masked import Masked
from pretrain.objectives.objective import ModelWithLoss, Objective


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every loss take the path of a large vocabulary, 128 targets at a time."""
    monkeypatch.setattr(loss, "MAX_UNCHUNKED_LOGITS", 0)
    monkeypatch.setattr(loss, "MAX_CHUNK_LOGITS", 1)


def problem(bias: bool, ignored: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Return features, weight and perhaps bias, and 300 targets: two chunks and a part."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(300, 16), (70, 16), (70,)][: 2 + bias]
    values = [torch.randn(shape, generator=draw).to(dtype).requires_grad_() for shape in shapes]
    targets = torch.randint(70, (300,), generator=draw)
    if ignored != "none":
        targets[:: 1 if ignored == "all" else 3] = IGNORE
    return values, targets


def head_of(weight: Tensor, bias: Tensor | None = None, softcap: Softcap | None = None) -> Any:
    return SimpleNamespace(weight=weight, bias=bias, softcap=softcap)


def weights_of(targets: Tensor, weighted: bool) -> Tensor | None:
    return torch.rand(len(targets), generator=torch.Generator().manual_seed(1)) if weighted else None


CAPS = {None: None, "tanh": Softcap(3.0), "sqrt": Softcap(3.0, by_tanh=False)}


def plain_loss(
    values: list[Tensor], targets: Tensor, z_loss: float = 0.0, weights: Tensor | None = None, cap: str | None = None
) -> Tensor:
    """The definition, in 64 bits."""
    features, weight, *bias = (value.double() for value in values)
    logits = features @ weight.T + (bias[0] if bias else 0.0)
    if cap is not None:  # at 3
        logits = 3 * torch.tanh(logits / 3) if cap == "tanh" else logits / torch.sqrt(1 + logits**2 / 9)
    kept = targets != IGNORE
    factors = (torch.ones(len(targets)) if weights is None else weights).double()[kept]
    penalty = z_loss * logits.exp().sum(-1).log()[kept].square()
    return (factors * (penalty - logits.log_softmax(-1)[kept, targets[kept]])).sum()


@pytest.mark.parametrize("chunks", [True, False], ids=["chunks", "whole"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cap", CAPS)
def test_the_loss_and_its_gradient_are_as_defined(
    chunks: bool,
    bias: bool,
    ignored: str,
    z_loss: float,
    weighted: bool,
    cap: str | None,
    request: pytest.FixtureRequest,
) -> None:
    """The penalty of log Z shows in the gradient alone."""
    if chunks:
        request.getfixturevalue("small_chunks")
    values, targets = problem(bias, ignored)
    weights = weights_of(targets, weighted)
    expected = plain_loss(values, targets, weights=weights, cap=cap)
    gradients = torch.autograd.grad(3 * plain_loss(values, targets, z_loss, weights, cap), values)
    head = head_of(values[1], values[2] if bias else None, CAPS[cap])
    arguments = (values[0], head, targets, weights, loss.LossSettings(z_loss=z_loss))
    found = loss.cross_entropy_sum(*arguments)
    with torch.no_grad():
        assert_close(loss.cross_entropy_sum(*arguments).double(), expected, rtol=1e-6, atol=0)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(torch.autograd.grad(3 * found, values), gradients, strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_both_paths_agree_at_the_threshold(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    values, targets = problem(bias, "some")
    arguments = (values[0], head_of(*values[1:]), targets)
    chunked_calls = []
    real = loss._ChunkedCrossEntropy.apply
    monkeypatch.setattr(loss._ChunkedCrossEntropy, "apply", lambda *a: chunked_calls.append(1) or real(*a))
    monkeypatch.setattr(loss, "MAX_UNCHUNKED_LOGITS", 300 * 70)
    whole = loss.cross_entropy_sum(*arguments)
    assert not chunked_calls
    monkeypatch.setattr(loss, "MAX_UNCHUNKED_LOGITS", 300 * 70 - 1)
    assert_close(loss.cross_entropy_sum(*arguments), whole, rtol=1e-6, atol=0)
    assert chunked_calls
    with torch.no_grad():
        assert_close(loss.cross_entropy_sum(*arguments), whole, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("small_chunks")
def test_chunks_keep_32_bits_of_the_sums_under_autocast() -> None:
    """Adding up in bfloat16 would be off by percents: only the matmuls are rounded."""
    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(size, 16, generator=draw).requires_grad_() for size in (4000, 70)]
    targets = torch.randint(70, (4000,), generator=draw)
    expected = plain_loss(values, targets)
    gradients = torch.autograd.grad(expected, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss.cross_entropy_sum(values[0], head_of(values[1]), targets)
    assert_close(found.double(), expected, rtol=2e-4, atol=0)
    for ours, theirs in zip(torch.autograd.grad(found, values), gradients, strict=True):
        assert ((ours - theirs).norm() / theirs.norm()).item() < 0.01


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cap", CAPS)
def test_the_loss_for_a_compiler_is_the_loss(
    bias: bool, ignored: str, z_loss: float, weighted: bool, cap: str | None
) -> None:
    """What a GPU's compiler makes one kernel of: of one chunk, with its gradient."""
    values, targets = problem(bias, ignored)
    weights = weights_of(targets, weighted)
    expected = plain_loss(values, targets, weights=weights, cap=cap)
    of_features, *others = torch.autograd.grad(plain_loss(values, targets, z_loss, weights, cap), values)
    with torch.no_grad():
        features, weight, *biases = values
        logits = features @ weight.T
        found, of_bias, total = loss.fused_grad_logits(
            logits, *(biases or [None]), targets, loss.LossTerms(z_loss, CAPS[cap]), weights
        )
    assert_close(total.double(), expected, rtol=1e-6, atol=0)
    assert_close(found @ weight, of_features.float(), rtol=1e-5, atol=1e-5)
    if bias:
        assert_close(of_bias, others[1].float(), rtol=1e-5, atol=1e-5)
    else:
        assert of_bias is None


def test_a_gpu_has_larger_chunks_of_round_numbers() -> None:
    assert loss.chunk_size(50_257, gpu=False) == 667
    assert loss.chunk_size(50_257, gpu=True) == 4096
    assert loss.chunk_size(1 << 25, gpu=True) == 128


@pytest.mark.usefixtures("small_chunks")
def test_each_target_has_its_loss_and_the_prediction() -> None:
    values, targets = problem(bias=True, ignored="some")
    losses, predictions = loss.token_losses(values[0], head_of(*values[1:]), targets)
    logits = F.linear(*values)
    kept = targets != IGNORE
    assert_close(losses[kept], F.cross_entropy(logits[kept], targets[kept], reduction="none"))
    assert not losses[~kept].any()
    assert torch.equal(predictions, logits.argmax(-1))
    assert losses.dtype == torch.float32
    assert not losses.requires_grad


def rows(count: int, length: int) -> Rows:
    """Return rows whose numbers of targets differ widely: short documents, and a padded end of each row."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(5, 50, (count, length))
    documents = np.zeros((count, length), np.int32)
    for row in range(count):
        documents[row] = np.cumsum(draw.random(length) < 0.05 * row)
        documents[row, length - 5 * row :] = -1
    following = np.where(documents == np.roll(documents, -1, axis=1), np.roll(tokens, -1, axis=1), IGNORE)
    following[:, -1] = IGNORE
    following[documents < 0] = IGNORE
    positions = np.tile(np.arange(length), (count, 1))
    return Rows(tokens, following, positions, documents)


def part_of(whole: Rows, part: slice) -> Rows:
    return Rows(whole.tokens[part], whole.next_tokens[part], whole.positions[part], whole.documents[part])


def masked() -> Masked:
    return Masked(MaskedConfig(mask_probability=0.3), mask_id=1, special_ids=[0, 1], vocab_size=50, seed=0)


@pytest.mark.parametrize(("objective", "family"), [(Causal(), "gpt"), (masked(), "bert")])
def test_unequal_micro_batches_give_the_gradient_of_the_batch(objective: Objective, family: str) -> None:
    everything, samples = rows(4, 30), torch.arange(4)
    model_with_loss = ModelWithLoss(random_model(shape(family), 50, objective.causal), objective)
    total, count = model_with_loss(objective.collate(everything, samples))
    (total / count).backward()
    expected = {name: parameter.grad.clone() for name, parameter in model_with_loss.named_parameters()}
    model_with_loss.zero_grad()
    counts = []
    for part in (slice(0, 1), slice(1, 2), slice(2, 4)):
        loss_sum, part_count = model_with_loss(objective.collate(part_of(everything, part), samples[part]))
        loss_sum.backward()
        counts.append(int(part_count))
    assert sum(counts) == int(count)
    assert len(set(counts)) == 3  # a mean of means would be another number
    for name, parameter in model_with_loss.named_parameters():
        assert parameter.grad is not None, name
        assert_close(parameter.grad / sum(counts), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("objective", "family"), [(Causal(), "gpt"), (masked(), "bert")])
def test_training_and_evaluation_score_alike(objective: Objective, family: str) -> None:
    batch = objective.collate(rows(4, 30), torch.arange(4))
    model_with_loss = ModelWithLoss(random_model(shape(family), 50, objective.causal), objective)
    total, count = model_with_loss(batch)
    losses, predictions = model_with_loss.evaluate(batch)
    assert losses.shape == predictions.shape == batch.targets.shape
    assert_close(losses.sum(), total.detach(), rtol=1e-5, atol=0)
    assert int((losses > 0).sum()) == int(count)
    assert int(predictions.min()) >= 0  # so that no answer equals IGNORE


def test_the_head_runs_at_the_targets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = masked()
    model_with_loss = ModelWithLoss(random_model(shape("bert"), 50, False), objective)
    seen: list[torch.Size] = []
    features = model_with_loss.model.head.features
    monkeypatch.setattr(
        model_with_loss.model.head, "features", lambda hidden: seen.append(hidden.shape) or features(hidden)
    )
    batch = objective.collate(rows(4, 30), torch.arange(4))
    model_with_loss(batch)
    model_with_loss.evaluate(batch)
    assert seen == [torch.Size([4 * 9, 32])] * 2  # 9 = 0.3 x 30


def test_a_batch_moves_as_a_whole() -> None:
    batch = masked().collate(rows(2, 30), torch.arange(2))
    moved = batch.to("meta")
    assert moved.is_causal is None
    kinds = {name: value.device.type for name, value in vars(moved).items() if value is not None}
    assert kinds.pop("sample_indices") == "cpu", "which no device reads"
    assert set(kinds.values()) == {"meta"}
    causal = Batch(batch.tokens, batch.positions, None, batch.targets, None, batch.sample_indices)
    assert causal.to("cpu").documents is None
    assert causal.to("cpu").target_positions is None


@pytest.mark.slow
def test_a_penalty_keeps_the_sum_of_the_exponentiated_logits_near_one() -> None:
    """Logits that are all moved by the same number have the same loss: the penalty alone moves them back."""
    (features, weight, bias), targets = problem(bias=True, ignored="some")
    batch = Batch(targets, targets, None, targets.unsqueeze(0), None, torch.zeros(1))

    def trained(z_loss: float) -> tuple[float, float]:
        objective = CausalConfig(z_loss=z_loss).build(Words(), seed=0)
        moved = (bias.detach() + 20.0).requires_grad_()
        head = SimpleNamespace(weight=weight.detach(), bias=moved, features=lambda hidden: hidden)
        optimizer = torch.optim.SGD([moved], lr=30.0)
        for _ in range(500):
            optimizer.zero_grad()
            found, count = objective(features.detach().unsqueeze(0), head, batch)
            (found / count).backward()
            optimizer.step()
        return (features @ weight.T + moved).logsumexp(-1).mean().item(), found.item() / count.item()

    (drifted, loss_without), (held, loss_with) = trained(0.0), trained(1e-2)
    assert drifted > 20.0
    assert abs(held) < 4.0
    assert loss_with == pytest.approx(loss_without, rel=0.01)
